"""Scores during a run: of the averaged G, against the same noise and images each time."""

import math

import torch
from conftest import small_config, small_faces, trainer_on

from magnet.evaluation import scores as evaluation
from magnet.evaluation.scores import Evaluation


def test_a_score_changes_with_the_averaged_generator_alone():
    trainer = trainer_on(small_config(evaluate_every=2), small_faces())
    agent = trainer.generators[0]
    scoring = Evaluation([agent], trainer.dataset, trainer.config)
    assert scoring.best["swd"] == math.inf
    first = scoring.score(2)
    assert scoring.score(4) == first and scoring.best == {"swd": first["swd"], "step": 2, "worse_since": 1}
    assert Evaluation([agent], trainer.dataset, trainer.config).score(2) == first, "whenever the process started"
    with torch.no_grad():
        agent.networks["generator"].layers[0].weight.mul_(3)
    assert scoring.score(6) == first
    with torch.no_grad():
        agent.targets["generator"].layers[0].weight.add_(0.1)
    assert scoring.score(8) != first
    assert Evaluation([agent], trainer.dataset, small_config(evaluate_every=2, seed=1)).score(2) != scoring.score(2)


def test_real_images_of_either_orientation_are_compared_with_as_many_samples(monkeypatch):
    seen = {}

    def watch(fakes, reals, random):
        seen.update(fakes=fakes, reals=reals)
        return {"swd": 1.0}

    monkeypatch.setattr(evaluation, "sliced_wasserstein", watch)
    monkeypatch.setattr(evaluation, "IMAGES", 150)
    for count in (40, 400):
        trainer = trainer_on(small_config(evaluate_every=1), small_faces(count))
        Evaluation(trainer.generators, trainer.dataset, trainer.config).score(1)
        assert seen["fakes"].shape == seen["reals"].shape == (min(count, 150), 3, 32, 32)
        assert seen["fakes"].dtype == seen["reals"].dtype == torch.uint8
        every = trainer.dataset.batch(torch.arange(2 * count)).add(1).mul(127.5).round().to(torch.uint8)
        orientations = [{image.numpy().tobytes() for image in part} for part in every.chunk(2)]
        shown = {image.numpy().tobytes() for image in seen["reals"]}
        assert shown <= orientations[0] | orientations[1] and all(shown & some for some in orientations)
        assert len(seen["fakes"].flatten(1).unique(dim=0)) == len(seen["fakes"])
