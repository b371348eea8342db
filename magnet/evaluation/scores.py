"""How a run comes on: a score of its samples every so many steps, which of them was best, and when to give up."""

import json
import math
from pathlib import Path

import torch

from magnet.agents.generator import GeneratorAgent
from magnet.config import agent_names
from magnet.data.gaussians import SAMPLE_COUNT, count_modes
from magnet.data.image_dataset import ImageDataset
from magnet.evaluation.metrics import sliced_wasserstein
from magnet.evaluation.sampling import BATCH, Sampler
from magnet.game.rewards import reward_function
from magnet.support.random_streams import stream

IMAGES = 2000  # on either side, if there are as many to train on


class Evaluation:
    """Scores a run every `config.evaluate_every` steps, and keeps the best.

    Pictures by the sliced Wasserstein distance ("swd"), points by how many modes they cover and how evenly ("kl").

    dataset: the images or points to compare with, held-out ones if there are some.

    The samples are of the averaged G (of several a share each) from the same noise each time, and real images and
    projections are the same too: differences are the network's. Draws nothing from the run's own generators.
    """

    def __init__(self, agents: list[GeneratorAgent], dataset: ImageDataset, config):
        self.agents, self.dataset, self.config = agents, dataset, config
        self.score = "kl" if config.points else "swd"  # whose lowest value is the best
        # What checkpoints hold, and a resumed run puts back. The last: evaluations, not steps.
        self.best = {self.score: math.inf, "step": 0, "worse_since": 0}
        if config.evaluate_every:
            random = stream(config.seed, "evaluation")
            count = SAMPLE_COUNT if config.points else min(IMAGES, len(dataset))
            self.z = torch.randn(count, config.nz, generator=random)
            if not config.points:
                self.real = dataset.pack(dataset.batch(torch.randperm(2 * len(dataset), generator=random)[:count]))

    def after(self, step: int) -> dict[str, float]:
        """The scores after `step`, by name, if it is time for them; else {}.

        Of pictures "swd" and a part of it for each scale, of points what `count_modes` gives.
        """
        if not self.config.evaluate_every or step % self.config.evaluate_every:
            return {}
        fakes = []
        for agent, share in zip(self.agents, self.z.tensor_split(len(self.agents)), strict=True):
            sampler = Sampler(agent, None)
            fakes += [self.dataset.pack(sampler.prior(z.to(agent.device))) for z in share.split(BATCH)]
        fakes = torch.cat(fakes)
        if self.config.points:
            scores = count_modes(fakes, self.config.data)
        else:
            scores = sliced_wasserstein(fakes, self.real, stream(self.config.seed, "projections"))
        if scores[self.score] < self.best[self.score]:
            self.best = {self.score: scores[self.score], "step": step, "worse_since": 0}
        else:
            self.best = self.best | {"worse_since": self.best["worse_since"] + 1}
        return scores

    @property
    def patience_ended(self) -> bool:
        """Whether the last `config.patience` evaluations were no better than the best before them."""
        return 0 < self.config.patience <= self.best["worse_since"]

    def verdict(self, run: Path) -> str:
        """Why the run ended, and how near equilibrium the game was by the last line of the log."""
        line = json.loads((run / "metrics.jsonl").read_text(encoding="utf-8").splitlines()[-1])
        discriminator = agent_names(self.config)[1][0]
        value = line[f"{discriminator}/reward"]
        return (
            f"no better score in {self.best['worse_since']} evaluations than {self.best[self.score]:.2f} at step "
            f"{self.best['step']} (checkpoints/best.pt); at the end V(D, G) was {value:.2f}, at "
            f"equilibrium {reward_function(self.config.reward_function).equilibrium:.2f}, and D was right on "
            f"{line[f'{discriminator}/accuracy_real']:.0%} of the real and "
            f"{line[f'{discriminator}/accuracy_fake']:.0%} of the fake images, at equilibrium 50%"
        )
