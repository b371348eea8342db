"""Several generators and discriminators: the classifier's reward, what is shown of each generator, and the settings."""

import pytest
import torch
from conftest import new_trainer, step_and_batch

from magnet.config import PRESETS, REWARD_FUNCTION_DEFAULTS, Config, check, complete
from magnet.data.image_dataset import to_uint8
from magnet.evaluation.drawing import draw
from magnet.evaluation.metrics import sliced_wasserstein
from magnet.evaluation.sampling import GRID_BATCH, FixedGrids, Sampler
from magnet.evaluation.scores import Evaluation
from magnet.support.errors import UserError
from magnet.support.random_streams import stream


def test_each_generator_is_rewarded_for_its_own_class():
    trainer = new_trainer(2, 2, specialise=1.0, lr=0.01)
    metrics, batch = step_and_batch(trainer)
    d_as = [agent.networks["actor"] for agent in trainer.discriminators]  # they learn before the generators
    for i, agent in enumerate(trainer.generators):
        chances = [d_a.classifier(d_a.stack(batch.policy_images[i])).log_softmax(dim=1)[:, i].mean() for d_a in d_as]
        assert metrics[f"{agent.name}/classification"].item() == pytest.approx(sum(chances).item() / 2, rel=1e-4)


@pytest.mark.parametrize(("generators", "rows"), [(3, 2), (9, 1)])
def test_grids_have_rows_for_each_generator_of_the_same_noise_and_states(generators, rows):
    trainer = new_trainer(generators)
    grids = FixedGrids(trainer.generators, trainer.dataset, 0)
    images = grids.draw()
    assert len(images["prior"]) == len(images["policy"]) == generators * rows * 8
    for i, agent in enumerate(trainer.generators):
        prior = images["prior"][i * rows * 8 : (i + 1) * rows * 8]
        assert torch.equal(prior, Sampler(agent, trainer.dataset, batch=GRID_BATCH).generate(grids.z))
        assert torch.equal(images["policy"][i * rows * 8 :: 2][: rows * 4], grids.states)


@pytest.mark.parametrize("kind", ["prior", "policy", "interpolation"])
def test_every_generator_makes_its_share_of_the_samples(kind):
    trainer = new_trainer(3)
    faces = trainer.dataset if kind == "policy" else None
    images, states = draw([Sampler(agent, faces) for agent in trainer.generators], kind, 8)
    alone = [draw([Sampler(agent, faces)], kind, n)[0] for agent, n in zip(trainer.generators, (3, 3, 2), strict=True)]
    assert torch.equal(images, torch.cat(alone))
    assert (states is None) == (kind != "policy")


def test_scores_during_training_are_of_all_generators():
    trainer = new_trainer(2, evaluate_every=1)
    evaluation = Evaluation(trainer.generators, trainer.dataset, trainer.config)
    halves = [Sampler(a, None).generate(z) for a, z in zip(trainer.generators, evaluation.z.chunk(2), strict=True)]
    expected = sliced_wasserstein(to_uint8(torch.cat(halves)), evaluation.real, stream(0, "projections"))
    assert evaluation.score(1)["swd"] == pytest.approx(expected["swd"], rel=1e-5)


@pytest.mark.parametrize(
    ("flags", "sentence"),
    [
        ({"specialise": 1.0}, "--specialise 1 is for several"),
        ({"algorithm": "gan", "gamma": 0.5}, "this game has none: give --gamma 0"),
        ({"critics": "none", "gamma": 0.5}, "this game has none: give --gamma 0"),
        ({"reward_function": "wasserstein", "gradient_penalty": 0.0}, "needs bounded"),
    ],
)
def test_settings_that_exclude_each_other_are_refused_in_one_sentence(flags, sentence):
    with pytest.raises(UserError, match=sentence):
        check(complete(flags))


def test_a_reward_function_brings_its_settings_unless_flags_say_otherwise():
    for kind, settings in REWARD_FUNCTION_DEFAULTS.items():
        config = complete(PRESETS["cpu"] | {"reward_function": kind})
        check(config)
        assert {name: getattr(config, name) for name in settings} == settings
        name, value = next(iter(settings.items()))
        assert getattr(complete({"reward_function": kind, name: value + 1}), name) == value + 1
    assert complete({}) == Config()


def test_an_extra_reward_lowers_epsilon_unless_a_flag_sets_it():
    """Random actions ignore the state: with epsilon 0.5 answers to `resemble` had a smaller gap."""
    assert complete({}).epsilon == 0.5 and complete({"extra_reward": "resemble"}, {"epsilon": 0.2}).epsilon == 0.1
    assert complete({"extra_reward": "resemble", "epsilon": 0.3}).epsilon == 0.3
