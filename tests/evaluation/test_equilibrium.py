"""The equilibrium report: ideal discriminators of known distributions, and fresh ones that learn."""

import copy
import math

import numpy as np
import pytest
import torch
from conftest import CPU, small_config
from torch import nn

from magnet.agents.discriminator import DiscriminatorAgent
from magnet.data import synthetic
from magnet.data.image_dataset import ImageDataset, from_uint8, to_uint8
from magnet.evaluation import equilibrium
from magnet.evaluation.equilibrium import discriminate, report_equilibrium


class Bright(nn.Module):
    """A D_a of two kinds of image, all white or all black: `logit` for white ones, minus that for black ones."""

    def __init__(self, logit, shift=0.0):
        super().__init__()
        self.logit, self.shift = logit, shift

    def forward(self, images):
        return images.mean(dim=(1, 2, 3)).sign() * self.logit + self.shift


def new_agent(config=None, **networks):
    agent = DiscriminatorAgent("discriminator", small_config(lr=2e-3, **(config or {})), CPU)
    agent.networks |= networks
    return agent


def as_dataset(images):
    return ImageDataset(images.numpy(), CPU)


def paint(white, black):
    """Flat images: so many white ones, then so many black ones."""
    return torch.tensor([255] * white + [0] * black, dtype=torch.uint8)[:, None, None, None].expand(-1, 3, 32, 32)


def draw_faces(count):
    return torch.from_numpy(synthetic.draw_faces(count, 32, seed=0)[0])


def noise(count, seed=0, side=32):
    """Squares of random colours, `side` in a row: alike mirrored, and no two images the same."""
    small = np.random.default_rng(seed).integers(0, 256, (count, 3, side, side), np.uint8)
    return torch.from_numpy(small.repeat(32 // side, axis=2).repeat(32 // side, axis=3))


@pytest.mark.parametrize(
    ("rewards", "actor", "value"),
    [("log", Bright(math.log(3)), 1.5 * math.log(0.75) + 0.5 * math.log(0.25)),  # -log 4 + 2 JSD: the best logits
     ("hinge", Bright(1.0), -1.0), ("wasserstein", Bright(1.0, shift=10.0), 1.0),
     ("relativistic", Bright(1.0, shift=10.0), None)],  # of pairs: it depends on who stands beside whom
)  # fmt: skip
def test_an_ideal_discriminator_of_known_distributions(rewards, actor, value):
    """Real images are white in 3 of 4 cases, held-out ones in 2 of 4, fakes in 1 of 4."""
    report = report_equilibrium(
        new_agent({"reward_function": rewards}, actor=actor), fakes=paint(30, 90), draw=lambda n: paint(n, 0),
        training=as_dataset(paint(90, 30)), held_out=as_dataset(paint(20, 20)), steps=1,
    )  # fmt: skip
    assert report["accuracy_real"] == report["accuracy_fake"] == 0.75 and report["accuracy_held_out"] == 0.5
    if value is None:
        assert -math.log1p(math.exp(2)) < report["value"] < -math.log1p(math.exp(-2))
    else:
        assert report["value"] == pytest.approx(value, abs=1e-6)


def test_d_a_is_used_as_it_plays_and_left_as_it_was():
    agent = DiscriminatorAgent("discriminator", small_config(), CPU)
    reals, fakes = draw_faces(16), noise(16)
    before = copy.deepcopy(agent.networks["actor"].state_dict())
    logits = torch.stack([discriminate(agent, reals), discriminate(agent, fakes)])
    assert all(torch.equal(before[key], value) for key, value in agent.networks["actor"].state_dict().items())
    with torch.no_grad():
        actor = agent.networks["actor"]  # in the game it sees batches of B images of one kind
        played = [[actor(from_uint8(images[i : i + 8])) for i in (0, 8)] for images in (reals, fakes)]
        assert torch.equal(logits, torch.stack([torch.cat(part) for part in played]))
        by_running_statistics = actor.eval()(from_uint8(reals))
    assert not torch.allclose(by_running_statistics, logits[0], atol=1e-3), "else the test says nothing"


def test_half_right_proves_nothing_a_fresh_discriminator_does():
    report = report_equilibrium(
        new_agent(actor=Bright(0.0)), fakes=noise(64), draw=lambda n: noise(n, n),
        training=as_dataset(draw_faces(80)), steps=30,
    )  # fmt: skip
    assert report["value"] == pytest.approx(-math.log(4), abs=1e-6) and report["fresh_accuracy"] > 0.95


def test_a_fresh_discriminator_fails_on_new_images_of_one_distribution_though_it_knows_some_by_heart():
    learned = []

    def draw(count):
        learned.append(noise(count, seed=5 + len(learned), side=4))
        return learned[-1]

    report = report_equilibrium(
        new_agent(actor=Bright(0.0)), fakes=noise(128, seed=1, side=4), draw=draw,
        training=as_dataset(noise(40, seed=2, side=4)), held_out=as_dataset(noise(128, seed=3, side=4)), steps=30,
    )  # fmt: skip
    assert sum(map(len, learned)) == 30 * 64
    assert report["fresh_accuracy"] == pytest.approx(0.5, abs=0.1)


def test_without_held_out_images_a_fresh_discriminator_is_tested_on_a_fifth_that_it_did_not_learn(monkeypatch):
    tested, learned = [], []

    class Recording(nn.Module):
        def forward(self, images):
            tested.extend(to_uint8(images[:, 0, 0, 0]).tolist())
            return images.new_zeros(len(images))

    def train(discriminator, **given):
        learned.extend(to_uint8(given["real"].batch(given["indices"]))[:, 0, 0, 0].tolist())
        return new_agent(actor=Recording())

    monkeypatch.setattr(equilibrium, "train_fresh_discriminator", train)
    greys = torch.arange(100, dtype=torch.uint8)[:, None, None, None].expand(-1, 3, 32, 32)
    report = report_equilibrium(new_agent(actor=Bright(1.0)), fakes=paint(50, 0), draw=None, training=as_dataset(greys))
    fifth = tested[:20]
    assert sorted(fifth + learned) == list(range(100)) and fifth != sorted(fifth), "at random: names may be in groups"
    assert report["fresh_accuracy"] == 0.5 and "accuracy_held_out" not in report


def test_a_report_follows_its_seed_and_moves_nothing_else():
    def report(seed):
        return report_equilibrium(
            new_agent(actor=Bright(1.0)), fakes=noise(64), draw=noise, training=as_dataset(noise(90, 1)),
            held_out=as_dataset(noise(64, 2)), steps=3, seed=seed,
        )  # fmt: skip

    torch.manual_seed(0)
    first = report(seed=3)
    after = torch.rand(1)
    torch.manual_seed(1)
    assert report(seed=3)["fresh_accuracy"] == first["fresh_accuracy"] != report(seed=4)["fresh_accuracy"]
    torch.manual_seed(0)
    new_agent()
    assert torch.equal(after, torch.rand(1))


def test_real_images_are_shown_in_both_orientations_as_they_are_played():
    class Left(nn.Module):
        def forward(self, images):
            return images[:, 0, 0, 0] - images[:, 0, 0, -1]

    white_on_the_left = torch.cat([paint(100, 0)[..., :16], paint(0, 100)[..., 16:]], dim=3)
    report = report_equilibrium(
        new_agent(actor=Left()), fakes=white_on_the_left, draw=noise, training=as_dataset(white_on_the_left),
        held_out=as_dataset(white_on_the_left), steps=1,
    )  # fmt: skip
    assert report["accuracy_fake"] == 0
    assert report["accuracy_real"] == pytest.approx(0.5, abs=0.2)
    assert report["accuracy_held_out"] == pytest.approx(0.5, abs=0.2)


def test_a_fresh_discriminator_is_the_same_for_every_game_so_that_runs_compare():
    def learn(**changes):
        agent = DiscriminatorAgent("discriminator", small_config(**changes), CPU)
        fresh = equilibrium.train_fresh_discriminator(
            agent, draw=noise, real=as_dataset(noise(20, 1)), indices=torch.arange(20), steps=2, seed=0
        )
        return torch.cat([p.detach().flatten() for p in fresh.networks["actor"].parameters()])

    as_a_gan = learn(algorithm="gan")
    assert torch.equal(learn(critics="both", batch_size=16), as_a_gan)
    assert torch.equal(learn(critics="generator", r1_every=3), as_a_gan)
    assert torch.equal(learn(seed=5), as_a_gan), "its first weights follow the report's seed, not the run's"
    assert not torch.equal(learn(lr=0.01), as_a_gan)
    assert not torch.equal(learn(r1=10.0), as_a_gan)
