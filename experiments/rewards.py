#!/usr/bin/env python3
"""Trains with an extra reward, beside its controls, over seeds, and scores how the policy answers held-out faces.

    python3 experiments/rewards.py --data FOLDER --out resemble.jsonl --seeds 0 1 2
    python3 experiments/rewards.py --data FOLDER --out smile.jsonl --extra-reward smile --only critic --extra-weight 0.3

All further words are train.py's flags, for every run; by default `--preset cpu --precision fp32 --hold-out 0.1
--extra-reward resemble`. A line
of the output is a run: its setting, flags and scores. Lines that are there already are not made again.

Scores: the mean extra reward of the policy's images beside their own states, which are held-out faces; the gap, by
which it is higher than beside another state; how often an answer's own state scores best among 100; FD, precision and
recall of prior samples and of answers against the images of training, by --features.
Exit status: 0 done, 2 a mistake in the settings, said in one sentence, 130 stopped.
"""

import argparse
import json
import sys
import time
from collections.abc import Callable
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

import torch  # noqa: E402
from torch import Tensor  # noqa: E402
from torch.nn.functional import adaptive_avg_pool2d, cosine_similarity  # noqa: E402

from experiments import runs  # noqa: E402
from magnet.config import check, complete  # noqa: E402
from magnet.data.image_dataset import ImageDataset, to_uint8  # noqa: E402
from magnet.evaluation import answers  # noqa: E402
from magnet.evaluation.comparison import pick  # noqa: E402
from magnet.evaluation.drawing import draw  # noqa: E402
from magnet.evaluation.feature_networks import digest, load_exported_network  # noqa: E402
from magnet.evaluation.metrics import compute_features_in_parts, score_features  # noqa: E402
from magnet.evaluation.sampling import BATCH, Sampler, copy_in_float32  # noqa: E402
from magnet.game.extra_rewards import CELLS  # noqa: E402
from magnet.maddpg import MADDPG  # noqa: E402
from magnet.run import checkpoint  # noqa: E402
from magnet.run.session import build, load_pixels, load_reward  # noqa: E402
from magnet.support.devices import settle  # noqa: E402
from magnet.support.errors import UserError  # noqa: E402
from magnet.support.output import as_program  # noqa: E402
from magnet.support.paths import user_path  # noqa: E402
from magnet.support.random_streams import stream  # noqa: E402

BASE = ["--preset", "cpu", "--precision", "fp32", "--hold-out", "0.1", "--extra-reward", "resemble"]
STEPS = 4000
TRIES = (4, 16, 64)  # k of best of k
TRUTH_FROM = 500  # steps


def resemble_with_gradient(states: Tensor, images: Tensor) -> Tensor:
    """The shipped reward `resemble` with a gradient: (B, 3, S, S) in [-1, 1], two -> (B,)."""
    means = [adaptive_avg_pool2d(one.float(), CELLS) for one in (states, images)]
    return -(means[0] - means[1]).abs().mean(dim=(1, 2, 3)) / 2


def measure_critic_cosines(agent, states: Tensor, recurrent: Tensor, true: Callable = resemble_with_gradient) -> dict:
    """The cosine between the reward critic's gradient and the true one, at z and at the weights of G's first layer.

    G_a follows the gradient at z ("reward_cosine_z"), G the other ("reward_cosine_weights"). states (B, 3, S, S) in
    [-1, 1], recurrent (B, 2, layers, hidden), on the device. Copies of the networks compute it.
    """
    actor, generator, critic = (copy_in_float32(agent.networks[key]) for key in ("actor", "generator", "reward_critic"))
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
            rewards[: batch.new] = environment.normaliser.standardise(
                environment.extra(to_uint8(batch.state[: batch.new]).cpu(), to_uint8(images[: batch.new]).cpu())
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
        self.states = torch.cat(list(pick(held_out, torch.arange(len(held_out)))))
        self.embed, _ = load_exported_network(features, faces.device)
        order = torch.randperm(len(faces), generator=stream(0, "reference"))
        self.reals = compute_features_in_parts(self.embed, pick(faces, order[: self.count]), self.count)

    def compare(self, images: Tensor) -> dict[str, float]:
        """FD, precision and recall of uint8 images (N, 3, S, S) against the images of training."""
        found = score_features(compute_features_in_parts(self.embed, images.split(BATCH), len(images)), self.reals)
        return {"fd": found["frechet"], "precision": found["precision"], "recall": found["recall"]}

    def score(self, trainer: MADDPG) -> dict:
        """All scores of the first generator; the policy's are of its answers to the held-out faces."""
        agent = trainer.generators[0]
        sampler = Sampler(agent, self.faces)
        given = sampler.answer(self.states)
        found = answers.score_answers(self.extra, self.states, given)
        if len(self.states) >= answers.CANDIDATES:
            found["firsts"] = answers.measure_firsts(self.extra, self.states, given)
        images, _ = draw([sampler], "prior", self.count)
        found |= {"prior": self.compare(images), "answers": self.compare(given)}
        others = images[torch.arange(len(self.states)) % len(images)]
        found["prior"]["extra_reward"] = self.extra(self.states, others).mean().item()
        if trainer.config.extra_reward == "resemble":
            recurrent = sampler.mid_episode[: len(self.faces)]
            states = self.faces.batch(torch.arange(len(recurrent)))
            found |= measure_critic_cosines(agent, states, recurrent)
        return found

    def best_of(self, trainer: MADDPG, tries: int) -> dict:
        """For each held-out face the image with the highest reward of `tries` prior samples."""
        sampler, chosen = Sampler(trainer.generators[0], None), []
        for states in self.states.split(BATCH):
            noise = (sampler.draw_noise(len(states)) for _ in range(tries))
            images = torch.stack([to_uint8(sampler.generate(z)).cpu() for z in noise])
            rewards = torch.stack([self.extra(states, some) for some in images])
            chosen.append(images[rewards.argmax(dim=0), torch.arange(len(states))])
        chosen = torch.cat(chosen)
        return answers.score_answers(self.extra, self.states, chosen) | {"answers": self.compare(chosen)}

    def nearest_real(self, count: int = 500) -> dict:
        """For each held-out face the one with the highest reward of `count` other real faces."""
        others = torch.cat(list(pick(self.faces, torch.arange(min(count, len(self.faces))))))
        best = [self.extra(state.expand(len(others), -1, -1, -1), others).max() for state in self.states]
        return {"extra_reward": torch.stack(best).mean().item()}


def train_and_score(trainer: MADDPG, scorer: Scorer, steps: int) -> dict:
    """Trains for `steps` steps; the scores, the critic's R^2 over the last 500 steps, and seconds of CPU time."""
    explained, began = [], time.process_time()
    while trainer.steps < steps:
        metrics = trainer.step()
        if trainer.steps > max(1, steps - 500):  # the first step has no rewards yet
            explained.append(metrics["generator/reward_critic_r2"].item())
    seconds = time.process_time() - began
    found = {"steps": steps, "images": trainer.images_seen, "cpu_seconds": round(seconds, 1)}
    return found | {"reward_critic_r2": sum(explained) / len(explained)} | scorer.score(trainer)


def measure(options: argparse.Namespace, base: dict) -> None:
    """Makes the lines that options.out lacks. Raises UserError."""
    lines = [json.loads(line) for line in options.out.read_text().splitlines()] if options.out.exists() else []
    there = {(line["setting"], line["seed"], line.get("steps"), json.dumps(line["flags"])) for line in lines}

    def write(setting: str, seed: int, flags: dict, scores: dict) -> None:
        line = {"setting": setting, "seed": seed, "flags": flags} | scores
        line |= {"features": f"{options.features.name} {digest(options.features)}", "torch": torch.__version__}
        with open(options.out, "a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")

    for seed in options.seeds:
        for setting in options.only:
            _, changes, change = SETTINGS[setting]
            flags = {key: value for key, value in (base | changes).items() if key not in ("data", "models_dir")}
            if (setting, seed, options.steps, json.dumps(flags)) in there:
                continue
            config = complete(base | changes | {"seed": seed})
            check(config)
            if change is follow_truth and config.extra_reward != "resemble":
                raise UserError("The true gradient is known for resemble alone: leave it out with --only.")
            config = settle(config)
            pixels, extra = load_pixels(config), load_reward(config, base)
            trainer, _ = build(config, pixels, extra=extra)
            held_out = ImageDataset(load_pixels(config, held_out=True), config.device)
            scorer = Scorer(trainer.dataset, held_out, extra, options.features, options.count)
            if change:
                change(trainer)
            write(setting, seed, flags, train_and_score(trainer, scorer, options.steps))
            if setting == "weight 0":
                for tries in TRIES:
                    write(f"best of {tries}", seed, flags, scorer.best_of(trainer, tries))
                write("nearest real face", seed, flags, scorer.nearest_real())
            if options.keep:
                state = {"config": vars(config), "faces": trainer.dataset.fingerprint, "best": None}
                name = f"{setting}-{config.extra_reward}-{config.extra_weight}-{seed}.pt".replace(" ", "-")
                checkpoint.save(options.keep / name, state | {"trainer": trainer.state_dict()})


def parse(arguments: list[str]) -> tuple[argparse.Namespace, dict]:
    """The command line: what is this program's, and the parameters of all runs. Exits with 2 on a bad word."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=user_path, default=Path("rewards.jsonl"), help="the lines (default %(default)s)")
    parser.add_argument("--only", nargs="+", choices=SETTINGS, default=list(SETTINGS), help="some settings")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2], help="default 0 1 2")
    parser.add_argument("--steps", type=int, default=STEPS, help="of each run (default %(default)s)")
    parser.add_argument("--count", type=int, default=5000, help="prior samples that are scored (default %(default)s)")
    parser.add_argument("--keep", type=user_path, metavar="FOLDER", help="save a checkpoint of each run here")
    parser.add_argument(
        "--features", type=user_path, default=ROOT / "experiments" / "face_features.pt2", metavar="NET.pt2",
        help="the network of the scores (default: the one beside this program)",
    )  # fmt: skip
    options, rest = parser.parse_known_args(arguments)
    return options, runs.base_of(parser, [*BASE, *rest])


@as_program
def main(arguments: list[str] | None = None) -> int:
    """The program; returns its exit status."""
    options, base = parse(sys.argv[1:] if arguments is None else arguments)
    return runs.finish("rewards.py", lambda: measure(options, base), options.out)


if __name__ == "__main__":
    sys.exit(main())
