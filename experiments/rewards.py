#!/usr/bin/env python3
"""Trains with an extra reward, beside its controls, over seeds, and scores how the policy answers held-out faces.

    python3 experiments/rewards.py --data FOLDER --out resemble.jsonl --seeds 0 1 2
    python3 experiments/rewards.py --data FOLDER --out smile.jsonl --extra-reward smile --only critic --extra-weight 0.3

All further words are train.py's flags, for every run; by default `--preset cpu --precision fp32 --hold-out 0.1
--extra-reward resemble`. A line of the output is a run: its setting, all its parameters and its scores. Lines that
are there already are not made again.

Scores: the mean extra reward of the policy's images beside their own states, which are held-out faces; the gap, by
which it is higher than beside another state; how often an answer's own state scores best among 100; FD, precision and
recall of prior samples and of answers against the images of training, by --features.
Exit status: 0 done, 2 a mistake in the settings, said in one sentence, 130 stopped.
"""

import argparse
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import torch  # noqa: E402
from torch import Tensor  # noqa: E402
from torch.nn.functional import adaptive_avg_pool2d, cosine_similarity  # noqa: E402

from experiments import ablation  # noqa: E402
from magnet.config import Config, check, complete  # noqa: E402
from magnet.data.image_dataset import ImageDataset, to_uint8  # noqa: E402
from magnet.evaluation import answers, comparison, drawing, feature_networks, metrics, sampling  # noqa: E402
from magnet.game.extra_rewards import CELLS  # noqa: E402
from magnet.maddpg import MADDPG  # noqa: E402
from magnet.run import checkpoint, session  # noqa: E402
from magnet.run.initial_networks import adopt_architecture  # noqa: E402
from magnet.support import devices, random_streams  # noqa: E402
from magnet.support.errors import UserError  # noqa: E402
from magnet.support.output import as_program  # noqa: E402
from magnet.support.paths import user_path  # noqa: E402

BASE = ["--preset", "cpu", "--precision", "fp32", "--hold-out", "0.1", "--extra-reward", "resemble"]
TRIES = (4, 16, 64)  # k of best of k
TRUTH_FROM = 500  # steps
CANDIDATES = 100  # states among which an answer's own should score best


def resemble_with_gradient(states: Tensor, images: Tensor) -> Tensor:
    """The shipped reward `resemble` with a gradient: (B, 3, S, S) in [-1, 1], two -> (B,)."""
    means = [adaptive_avg_pool2d(one.float(), CELLS) for one in (states, images)]
    return -(means[0] - means[1]).abs().mean(dim=(1, 2, 3)) / 2


def measure_firsts(extra, states: Tensor, answers: Tensor) -> float:
    """How often an answer scores better beside its own state than beside each of the 99 others, in [0, 1].

    states, answers: uint8 (N, 3, S, S) on the CPU. Each 100 are compared with one another, which takes 100 N rewards.
    By chance it is 0.01. Raises ValueError if there are fewer than 100.
    """
    firsts = []
    for state, answer in zip(states.split(CANDIDATES), answers.split(CANDIDATES), strict=True):
        if len(state) == CANDIDATES:
            own = extra(state, answer)
            others = torch.stack([extra(state.roll(shift, dims=0), answer) for shift in range(1, CANDIDATES)])
            firsts.append((own > others.max(dim=0).values).float().mean())
    if not firsts:
        raise ValueError(f"{len(states)} states are too few: an answer is compared beside {CANDIDATES}")
    return torch.stack(firsts).mean().item()


def measure_critic_cosines(agent, states: Tensor, recurrent: Tensor, true: Callable = resemble_with_gradient) -> dict:
    """The cosine between the reward critic's gradient and the true one, at z and at the weights of G's first layer.

    G_a follows the gradient at z ("reward_cosine_z"), G the other ("reward_cosine_weights"). states (B, 3, S, S) in
    [-1, 1], recurrent (B, 2, layers, hidden), on the device. Copies of the networks compute it.
    """
    actor, generator, critic = (
        sampling.copy_in_float32(agent.networks[key]) for key in ("actor", "generator", "reward_critic")
    )
    first = next(generator.parameters())
    z = actor(states, recurrent)[0].detach().requires_grad_()
    images = generator(z)
    pairs = [
        torch.autograd.grad(value(states, images).mean(), (z, first), retain_graph=True) for value in (critic, true)
    ]
    names = ("reward_cosine_z", "reward_cosine_weights")
    both = ([gradient.double().flatten() for gradient in pair] for pair in zip(*pairs, strict=True))
    return {name: cosine_similarity(*pair, dim=0, eps=1e-30).item() for name, pair in zip(names, both, strict=True)}


def follow_truth(trainer: MADDPG) -> None:
    """The generators follow the true gradient of `resemble` instead of Q_r's, from step 500 on.

    If they follow it from the first step on, the images stay grey.
    """
    for agent in trainer.generators:

        def value(batch, agent=agent) -> Tensor:
            rewards = resemble_with_gradient(batch.state, batch.policy_images[agent.index])
            return trainer.environment.normaliser.standardise(rewards) * (trainer.steps >= TRUTH_FROM)

        agent.extra_value = value


def follow_score_function(trainer: MADDPG) -> None:
    """The generators follow REINFORCE (Williams 1992) on z, with the step's own rewards and no critic: G_a alone."""
    environment, sigma = trainer.environment, trainer.config.exploration
    for agent in trainer.generators:

        def value(batch, agent=agent) -> Tensor:
            act, images = batch.acts[agent.index], batch.policy_images[agent.index]
            rewards = torch.zeros(len(images))
            rewards[: batch.new_rows] = environment.normaliser.standardise(
                environment.extra(
                    to_uint8(batch.state[: batch.new_rows]).cpu(), to_uint8(images[: batch.new_rows]).cpu()
                )
            )  # as many calls as the critic's run makes
            error = act.action.detach() - (1 - sigma**2) ** 0.5 * act.policy
            return -rewards * error.square().sum(dim=1) / (2 * sigma**2)

        agent.extra_value = value


# name: the question; the flags that differ from the base; what is done to the trainer. Adam normalises the scale of a
# gradient: with the diversity weight 1e6, the diversity alone decides G_a's update.
SETTINGS: dict[str, tuple[str, dict, Callable | None]] = {
    "critic": ("does the policy answer?", {}, None),
    "weight 0": ("and without the reward?", {"extra_weight": 0.0}, None),
    "policy": ("if G_a alone follows the reward?", {"extra_to": "policy"}, None),
    "G_a without its critic's gradient": ("if G alone follows it?", {"diversity_weight": 1e6}, None),
    "true gradient": ("is the critic as good as the truth?", {}, follow_truth),
    "score function": ("does the critic bring more than REINFORCE?", {}, follow_score_function),
}


class Scorer:
    """Scores the generators of trainers on the same faces."""

    def __init__(self, faces, held_out, extra, features: Path, count: int):
        """faces, held_out: ImageDatasets; features: of torch.export; count: prior samples."""
        self.faces, self.extra, self.count = faces, extra, min(count, len(faces))
        self.states = torch.cat(list(comparison.pick(held_out, torch.arange(len(held_out)))))
        self.embed, _ = feature_networks.load_exported_network(features, faces.device)
        order = torch.randperm(len(faces), generator=random_streams.stream(0, "reference"))
        self.reals = metrics.compute_features_in_parts(
            self.embed, comparison.pick(faces, order[: self.count]), self.count
        )

    def compare(self, images: Tensor) -> dict[str, float]:
        """FD, precision and recall of uint8 images (N, 3, S, S) against the images of training."""
        scores = metrics.score_features(
            metrics.compute_features_in_parts(self.embed, images.split(sampling.BATCH), len(images)), self.reals
        )
        return {"fd": scores["frechet"], "precision": scores["precision"], "recall": scores["recall"]}

    def score(self, trainer: MADDPG) -> dict:
        """All scores of the first generator; the policy's are of its answers to the held-out faces."""
        agent = trainer.generators[0]
        sampler = sampling.Sampler(agent, self.faces)
        policy_images = sampler.answer(self.states)
        scores = answers.score_answers(self.extra, self.states, policy_images)
        if len(self.states) >= CANDIDATES:
            scores["firsts"] = measure_firsts(self.extra, self.states, policy_images)
        images, _ = drawing.draw([sampler], "prior", self.count)
        scores |= {"prior": self.compare(images), "answers": self.compare(policy_images)}
        others = images[torch.arange(len(self.states)) % len(images)]
        scores["prior"]["extra_reward"] = self.extra(self.states, others).mean().item()
        if trainer.config.extra_reward == "resemble":
            recurrent = sampler.mid_episode[: len(self.faces)]
            states = self.faces.batch(torch.arange(len(recurrent)))
            scores |= measure_critic_cosines(agent, states, recurrent)
        return scores

    def best_of(self, trainer: MADDPG, tries: int) -> dict:
        """For each held-out face the image with the highest reward of `tries` prior samples."""
        sampler, best = sampling.Sampler(trainer.generators[0], None), []
        for states in self.states.split(sampling.BATCH):
            images = torch.stack(
                [to_uint8(sampler.generate(sampler.draw_noise(len(states)))).cpu() for _ in range(tries)]
            )
            rewards = torch.stack([self.extra(states, some) for some in images])
            best.append(images[rewards.argmax(dim=0), torch.arange(len(states))])
        images = torch.cat(best)
        return answers.score_answers(self.extra, self.states, images) | {"answers": self.compare(images)}

    def nearest_real(self, count: int = 500) -> dict:
        """For each held-out face the one with the highest reward of `count` other real faces."""
        others = torch.cat(list(comparison.pick(self.faces, torch.arange(min(count, len(self.faces))))))
        best = [self.extra(state.expand(len(others), -1, -1, -1), others).max() for state in self.states]
        return {"extra_reward": torch.stack(best).mean().item()}


def train_and_score(trainer: MADDPG, scorer: Scorer, steps: int) -> dict:
    """Trains for `steps` steps; the scores, the critic's R^2 over the last 500 steps, and seconds of CPU time."""
    explained, began = [], time.process_time()
    while trainer.steps < steps:
        logged = trainer.step()
        if trainer.steps > max(1, steps - 500):  # the first step has no rewards yet
            explained.append(logged["generator/reward_critic_r2"].item())
    seconds = time.process_time() - began
    scores = {"steps": steps, "images": trainer.images_seen, "cpu_seconds": round(seconds, 1)}
    return scores | {"reward_critic_r2": sum(explained) / len(explained)} | scorer.score(trainer)


def new_config(base: dict, setting: str, seed: int, steps: int) -> Config:
    """The config of a run, checked. Raises UserError."""
    _, changes, change = SETTINGS[setting]
    config = adopt_architecture(complete(base | changes | {"seed": seed, "steps": steps}), base)
    check(config)
    if change is follow_truth and config.extra_reward != "resemble":
        raise UserError("The true gradient is known for resemble alone: leave it out with --only.")
    return config


def run_setting(options: argparse.Namespace, base: dict, setting: str, config: Config) -> Iterator[tuple[str, dict]]:
    """Trains; yields the name and scores of the setting, with "weight 0" also of its references. Raises UserError."""
    config, change = devices.settle(config), SETTINGS[setting][2]
    torch.set_num_threads(int(config.threads))
    pixels, extra = session.load_pixels(config), session.load_reward(config, base)
    trainer, _ = session.build(config, pixels, extra=extra)
    held_out = ImageDataset(session.load_pixels(config, held_out=True), config.device)
    scorer = Scorer(trainer.dataset, held_out, extra, options.features, options.count)
    if change:
        change(trainer)
    yield setting, train_and_score(trainer, scorer, options.steps)
    if setting == "weight 0":
        for tries in TRIES:
            yield f"best of {tries}", scorer.best_of(trainer, tries)
        yield "nearest real face", scorer.nearest_real()
    if options.keep:
        state = {"config": vars(config), "faces": trainer.dataset.fingerprint, "best": None}
        name = f"{setting}-{config.extra_reward}-{config.extra_weight}-{config.seed}.pt".replace(" ", "-")
        checkpoint.save(options.keep / name, state | {"trainer": trainer.state_dict()})


def measure(options: argparse.Namespace, base: dict) -> None:
    """Makes the lines that options.out lacks. Raises UserError."""
    network = f"{options.features.name} {feature_networks.digest(options.features)}"
    lines = ablation.read_lines(options.out, "setting", "seed", "flags") if options.out.exists() else []
    there = [(line["setting"], line["seed"], line.get("steps"), line["flags"]) for line in lines]
    runs = [(name, new_config(base, name, seed, options.steps)) for seed in options.seeds for name in options.only]
    for setting, config in runs:
        # All defaults too, as in ablation.py: lines that were made with other defaults do not count.
        flags = {key: value for key, value in vars(config).items() if key not in ("data", "models_dir")}
        if (setting, config.seed, options.steps, flags) in there:
            continue
        for name, scores in run_setting(options, base, setting, config):
            line = {"setting": name, "seed": config.seed, "flags": flags} | scores
            ablation.append_line(options.out, line | {"features": network, "torch": torch.__version__})


@as_program
def main(arguments: list[str] | None = None) -> int:
    """The program; returns its exit status."""
    parser = ablation.new_parser(__doc__, SETTINGS, "rewards.jsonl", [0, 1, 2])
    add = parser.add_argument
    add("--steps", type=int, default=4000, help="of each run (default %(default)s)")
    add("--keep", type=user_path, metavar="FOLDER", help="save a checkpoint of each run here")
    add("--features", type=user_path, default=ablation.FACE_FEATURES, metavar="NET.pt2", help="network of the scores")
    arguments = sys.argv[1:] if arguments is None else arguments
    options, base = ablation.parse_base(parser, arguments, BASE, steps=2, count=4)
    return ablation.finish("rewards.py", lambda: measure(options, base), options.out)


if __name__ == "__main__":
    sys.exit(main())
