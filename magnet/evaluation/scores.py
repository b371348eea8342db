"""Scores during a run: of its samples every so many steps, which of them was best, and when to give up."""

import math

import torch

from magnet.agents.generator import GeneratorAgent
from magnet.data.gaussians import SAMPLE_COUNT, PointDataset, count_modes
from magnet.data.image_dataset import ImageDataset
from magnet.evaluation.metrics import sliced_wasserstein
from magnet.evaluation.sampling import BATCH, Sampler
from magnet.support.random_streams import stream

IMAGES = 2000  # on either side, if there are as many to train on


class Evaluation:
    """Scores a run every `config.evaluate_every` steps, and keeps the best score.

    Images are scored by the sliced Wasserstein distance ("swd"), points by the modes that they cover ("kl").

    The samples come from the averaged G (each of several makes a share). Noise, real images and projections are the
    same each time, so only the network differs. Nothing is drawn from the run's own random generators.
    """

    def __init__(self, agents: list[GeneratorAgent], dataset: ImageDataset | PointDataset, config):
        """dataset: the images or points to compare with, held-out ones if there are some."""
        self.agents, self.dataset, self.config = agents, dataset, config
        self.metric = "kl" if config.points else "swd"  # the lowest is the best
        # Checkpoints hold it, and a resumed run puts it back. "worse_since" counts evaluations, not steps.
        self.best = {self.metric: math.inf, "step": 0, "worse_since": 0}
        if config.evaluate_every:
            random = stream(config.seed, "evaluation")
            count = SAMPLE_COUNT if config.points else min(IMAGES, len(dataset))
            self.z = torch.randn(count, config.nz, generator=random)
            if not config.points:
                self.real = dataset.pack(dataset.batch(torch.randperm(2 * len(dataset), generator=random)[:count]))

    def score(self, step: int) -> dict[str, float]:
        """The scores after `step`, by name: "swd" and its part for each scale, for points what `count_modes` gives."""
        fakes = []
        for agent, share in zip(self.agents, self.z.tensor_split(len(self.agents)), strict=True):
            sampler = Sampler(agent, None)
            fakes += [self.dataset.pack(sampler.generate(z.to(agent.device))) for z in share.split(BATCH)]
        fakes = torch.cat(fakes)
        if self.config.points:
            scores = count_modes(fakes, self.config.data)
        else:
            scores = sliced_wasserstein(fakes, self.real, stream(self.config.seed, "projections"))
        if scores[self.metric] < self.best[self.metric]:
            self.best = {self.metric: scores[self.metric], "step": step, "worse_since": 0}
        else:
            self.best = self.best | {"worse_since": self.best["worse_since"] + 1}
        return scores

    @property
    def is_over(self) -> bool:
        """Whether the last `config.patience` evaluations were no better than the best before them."""
        return 0 < self.config.patience <= self.best["worse_since"]

    def describe_end(self) -> str:
        """Why the run ended before its last step."""
        best = self.best
        return f"no better score in {best['worse_since']} evaluations than {self.describe_best()}"

    def describe_best(self) -> str:
        """The best score and its checkpoint."""
        return f"{self.best[self.metric]:.2f} at step {self.best['step']} (checkpoints/best.pt)"
