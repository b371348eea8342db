"""The equilibrium report: ideal judges of known distributions, and a fresh judge that only faces can fool."""

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
from magnet.evaluation.equilibrium import calibration_error, d_a, report_equilibrium


class Bright(nn.Module):
    """A judge of two kinds of image, all white or all black: `logit` for white ones, minus that for black ones."""

    def __init__(self, logit):
        super().__init__()
        self.logit = logit

    def forward(self, images):
        return images.mean(dim=(1, 2, 3)).sign() * self.logit


def agent(config=None, **networks):
    made = DiscriminatorAgent("discriminator", small_config(lr=2e-3, **(config or {})), CPU)
    made.networks |= networks
    return made


def real(images):
    return ImageDataset(images.numpy(), CPU)


def kinds(white, black):
    return torch.tensor([255] * white + [0] * black, dtype=torch.uint8)[:, None, None, None].expand(-1, 3, 32, 32)


def drawn(count, start):
    return torch.from_numpy(synthetic.draw_faces(count, 32, seed=0, start=start)[0])


def noise(count, seed=0, side=32):
    """Squares of random colours, `side` in a row: alike mirrored, and no two images the same."""
    small = np.random.default_rng(seed).integers(0, 256, (count, 3, side, side), np.uint8)
    return torch.from_numpy(small.repeat(32 // side, axis=2).repeat(32 // side, axis=3))


def test_an_ideal_judge_of_known_distributions():
    """Real images are white in 3 of 4 cases, fakes in 1 of 4: the best logit is log 3, and V is -log 4 + 2 JSD."""
    ideal = agent(actor=Bright(math.log(3)))
    report = report_equilibrium(
        ideal,
        fakes=kinds(30, 90),
        draw=lambda n: kinds(n, 0),
        training=real(kinds(90, 30)),
        held_out=real(kinds(20, 20)),
        steps=1,
    )
    to_mean = 0.75 * math.log(0.75 / 0.5) + 0.25 * math.log(0.25 / 0.5)  # KL of either to their mean, so JSD as well
    assert report["accuracy_real"] == report["accuracy_fake"] == 0.75 and report["accuracy_held_out"] == 0.5
    assert report["from_equilibrium"] == pytest.approx(2 * to_mean, abs=1e-6)
    assert report["value"] == pytest.approx(2 * to_mean - math.log(4), abs=1e-6)
    by_hand = 0.5 * (math.log(0.75) + math.log(0.25)) + 0.75 * math.log(0.75) + 0.25 * math.log(0.25)
    assert report["value_held_out"] == pytest.approx(by_hand, abs=1e-6)
    assert report["from_equilibrium_held_out"] == pytest.approx(by_hand + math.log(4), abs=1e-6)
    assert report["calibration_error"] == pytest.approx(0, abs=1e-6)


class Shifted(Bright):
    """Bright, whose logits are all higher by 10: where only differences count, that changes nothing."""

    def forward(self, images):
        return super().forward(images) + 10


@pytest.mark.parametrize(
    ("kind", "value", "at_equilibrium"),
    [("hinge", -1.0, -2.0), ("wasserstein", 1.0, 0.0), ("relativistic", None, -math.log(2))],
)
def test_reports_of_other_returns(kind, value, at_equilibrium):
    """Logits 1 and -1 (11 and -9 if shifted): real images are white in 3 of 4 cases, fakes in 1 of 4."""
    actor = Bright(1.0) if kind == "hinge" else Shifted(1.0)
    report = report_equilibrium(
        agent({"reward_function": kind}, actor=actor), fakes=kinds(30, 90), draw=lambda n: kinds(n, 0),
        training=real(kinds(90, 30)), steps=1,
    )  # fmt: skip
    assert report["accuracy_real"] == report["accuracy_fake"] == 0.75
    assert report["from_equilibrium"] == pytest.approx(report["value"] - at_equilibrium, abs=1e-6)
    if value is not None:  # of pairs it depends on who stands beside whom
        assert report["value"] == pytest.approx(value, abs=1e-6)
    else:
        assert -math.log1p(math.exp(2)) < report["value"] < -math.log1p(math.exp(-2))
    assert "calibration_error" not in report


def test_calibration_by_hand():
    logits, is_real = torch.tensor([0.95] * 4 + [0.55, 0.05]).logit(), torch.tensor([1, 1, 1, 0, 1, 0]) == 1
    assert calibration_error(logits, is_real) == pytest.approx((4 * 0.2 + 0.45 + 0.05) / 6, abs=1e-6)
    certain = torch.tensor([200.0, -200.0])
    assert calibration_error(certain, torch.tensor([True, False])) == pytest.approx(0)
    assert calibration_error(certain, torch.tensor([False, True])) == pytest.approx(1)


def test_calibrated_logits_have_no_error_and_overconfident_ones_have():
    random = torch.Generator().manual_seed(0)
    p = torch.rand(100_000, generator=random)
    is_real = torch.rand(p.shape, generator=random) < p
    assert calibration_error(p.logit(), is_real) < 0.01
    for scale in (0.3, 3):  # the error by hand: the mean of |sigmoid(scale * l) - p|
        expected = ((scale * p.logit()).sigmoid() - p).abs().mean().item()
        assert calibration_error(scale * p.logit(), is_real) == pytest.approx(expected, abs=0.01) and expected > 0.1


def test_d_is_judged_as_it_plays_and_left_as_it_was():
    judging = DiscriminatorAgent("discriminator", small_config(), CPU)
    reals, fakes = drawn(16, 0), noise(16)
    before = copy.deepcopy(judging.networks["actor"].state_dict())
    discriminated = torch.stack([d_a(judging, reals), d_a(judging, fakes)])
    assert all(torch.equal(before[key], value) for key, value in judging.networks["actor"].state_dict().items())
    with torch.no_grad():
        actor = judging.networks["actor"]  # in the game it judges batches of B images of one kind
        played = [[actor(from_uint8(images[i : i + 8])) for i in (0, 8)] for images in (reals, fakes)]
        assert torch.equal(discriminated, torch.stack([torch.cat(logits) for logits in played]))
        apart = actor.eval()(from_uint8(reals))
    assert not torch.allclose(apart, discriminated[0], atol=1e-3), "else the test says nothing"


def test_half_right_proves_nothing_a_fresh_judge_does():
    fooled = agent(actor=Bright(0.0))
    logged = report_equilibrium(
        fooled, fakes=noise(64), draw=lambda n: noise(n, n), training=real(drawn(80, 0)), steps=30
    )
    assert logged["from_equilibrium"] == pytest.approx(0, abs=1e-6)
    assert logged["fresh_accuracy"] > 0.95 and logged["fresh_value"] > -0.3


def test_a_fresh_judge_cannot_tell_real_images_from_others_of_their_kind_though_it_knows_some_by_heart():
    learned = []

    def draw(count):
        learned.append(noise(count, seed=5 + len(learned), side=4))
        return learned[-1]

    report = report_equilibrium(
        agent(actor=Bright(0.0)), fakes=noise(128, seed=1, side=4), draw=draw,
        training=real(noise(40, seed=2, side=4)), held_out=real(noise(128, seed=3, side=4)), steps=30,
    )  # fmt: skip
    assert sum(map(len, learned)) == 30 * 64
    assert report["fresh_accuracy"] == pytest.approx(0.5, abs=0.1)
    assert report["fresh_value"] < -math.log(4) + 0.1


def test_without_held_out_images_a_fresh_judge_answers_on_a_fifth_that_it_was_not_taught(monkeypatch):
    seen, taught = [], []

    class Recording(nn.Module):
        def forward(self, images):
            seen.extend(to_uint8(images[:, 0, 0, 0]).tolist())
            return images.new_zeros(len(images))

    def fresh(discriminator, **given):
        taught.extend(to_uint8(given["real"].batch(given["taught"]))[:, 0, 0, 0].tolist())
        seen.clear()
        return agent(actor=Recording())

    monkeypatch.setattr(equilibrium, "fresh_discriminator", fresh)
    greys = torch.arange(100, dtype=torch.uint8)[:, None, None, None].expand(-1, 3, 32, 32)
    judging = agent(actor=Bright(1.0))
    report = equilibrium.report_equilibrium(judging, fakes=kinds(50, 0), draw=None, training=real(greys))
    assert not any("held_out" in name for name in report)
    tested = seen[:20]
    assert sorted(tested + taught) == list(range(100)) and tested != sorted(tested), "at random: names may be in groups"
    assert report["fresh_accuracy"] == 0.5 and report["fresh_value"] == pytest.approx(-math.log(4))


def test_a_report_follows_its_seed_and_moves_nothing_else():
    def report(seed):
        return report_equilibrium(
            agent(actor=Bright(1.0)), fakes=noise(7), draw=noise, training=real(noise(9, 1)),
            held_out=real(noise(3, 2)), steps=2, seed=seed,
        )  # fmt: skip

    torch.manual_seed(0)
    first = report(seed=3)
    drawn_after = torch.rand(1)
    torch.manual_seed(1)
    second = report(seed=3)
    other = report(seed=4)
    torch.manual_seed(0)
    agent()
    assert torch.equal(drawn_after, torch.rand(1))
    names = {name for name in first if name.startswith("fresh")}
    assert {name: first[name] for name in names} == {name: second[name] for name in names}
    assert first["fresh_value"] != other["fresh_value"] and all(math.isfinite(value) for value in first.values())


def test_real_images_are_judged_in_both_orientations_as_they_are_played():
    class Left(nn.Module):
        def forward(self, images):
            return images[:, 0, 0, 0] - images[:, 0, 0, -1]

    white_on_the_left = torch.cat([kinds(100, 0)[..., :16], kinds(0, 100)[..., 16:]], dim=3)
    report = report_equilibrium(
        agent(actor=Left()), fakes=white_on_the_left, draw=noise, training=real(white_on_the_left),
        held_out=real(white_on_the_left), steps=1,
    )  # fmt: skip
    assert report["accuracy_fake"] == 0
    assert report["accuracy_real"] == pytest.approx(0.5, abs=0.2)
    assert report["accuracy_held_out"] == pytest.approx(0.5, abs=0.2)


def test_a_fresh_judge_is_the_same_for_every_way_of_learning_so_that_runs_compare():
    def learned(**changes):
        judging = DiscriminatorAgent("discriminator", small_config(**changes), CPU)
        fresh = equilibrium.fresh_discriminator(
            judging, draw=noise, real=real(noise(20, 1)), taught=torch.arange(20), steps=2, seed=0
        )
        return torch.cat([p.detach().flatten() for p in fresh.networks["actor"].parameters()])

    as_a_gan = learned(algorithm="gan")
    assert torch.equal(learned(critics="both", batch_size=16), as_a_gan)
    assert torch.equal(learned(critics="generator", r1_every=3), as_a_gan)
    assert torch.equal(learned(seed=5), as_a_gan), "its first weights follow the report's seed, not the run's"
    assert not torch.equal(learned(lr=0.01), as_a_gan)
    assert not torch.equal(learned(r1=10.0), as_a_gan)
