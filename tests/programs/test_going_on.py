"""A trainer repeats, and one that was saved goes on exactly; nothing that is saved is needless."""

import copy

import pytest
import torch
from conftest import (
    FULL,
    PRECISIONS,
    differing,
    leaves,
    new_trainer,
    run,
    same,
    saved,
    weights,
)


@PRECISIONS
def test_the_same_seed_gives_the_same_run_to_the_last_bit_and_another_seed_another(precision):
    trainers = [new_trainer(seed=seed, precision=precision, **FULL) for seed in (1, 1, 2)]
    metrics = [run(trainer, 4) for trainer in trainers]
    assert metrics[0] == metrics[1]
    assert same(saved(trainers[0]), saved(trainers[1]))
    assert metrics[0] != metrics[2]


def test_weights_actions_and_episodes_all_come_from_the_seed():
    first, second = new_trainer(seed=1), new_trainer(seed=2)
    assert differing(weights(first.agents), weights(second.agents)) == set(weights(first.agents))
    assert not torch.equal(first.environment.order, second.environment.order)
    streams = [[*(agent.random for agent in t.agents), t.replay.random] for t in (first, second)]
    assert len({tuple(random.get_state().tolist()) for random in sum(streams, [])}) == 6


def test_a_run_does_not_depend_on_other_random_numbers_drawn_meanwhile():
    trainers = new_trainer(**FULL), new_trainer(**FULL)
    expected = run(trainers[0], 3)
    for step in range(3):
        torch.manual_seed(step)
        assert run(trainers[1], 1) == expected[step : step + 1]


N, M = 5, 4  # with episodes of 3 states: saved inside the second episode, which ends within M steps


@PRECISIONS
@pytest.mark.parametrize(
    ("gamma", "fraction", "team"), [(0.0, 0.0, 1), (0.0, 0.25, 1), (0.9, 0.0, 1), (0.9, 0.25, 1), (0.9, 0.25, 2)]
)
def test_n_plus_m_steps_are_n_steps_a_restored_trainer_and_m_steps(gamma, fraction, team, precision):
    config = FULL | {"gamma": gamma, "replay_fraction": fraction, "precision": precision}
    whole, restored = new_trainer(team, team, **config), new_trainer(team, team, seed=7, **config)
    run(whole, N)
    restored.load_state_dict(saved(whole))
    assert run(restored, M) == run(whole, M)
    assert same(saved(restored), saved(whole))
    assert restored.images_seen == whole.images_seen


@pytest.mark.parametrize("n", [3, 4, 5])
def test_r1_falls_on_the_same_steps_in_a_run_that_was_interrupted(n):
    """It depends on the steps made since the run began, not since it was resumed."""
    options = FULL | {"r1": 1.0, "r1_every": 3}
    whole, restored = new_trainer(**options), new_trainer(seed=7, **options)
    metrics = run(whole, n)
    restored.load_state_dict(saved(whole))
    after = run(restored, 4)
    assert after == run(whole, 4)
    assert [t for t, line in enumerate(metrics + after) if "discriminator/r1" in line] == [*range(0, n + 4, 3)]
    assert same(saved(restored), saved(whole))


def test_a_run_with_penalties_and_spectral_norm_is_restored_exactly():
    options = FULL | {"spectral_norm": True, "r1": 1.0, "r2": 1.0, "gradient_penalty": 1.0}
    whole, restored = new_trainer(**options), new_trainer(seed=7, **options)
    run(whole, 2)
    restored.load_state_dict(saved(whole))
    assert run(restored, 2) == run(whole, 2)
    assert same(saved(restored), saved(whole))


ITEMS = [
    *(("agents", "generator", part, key) for part in ("networks", "targets", "optimizers")
      for key in ("actor", "generator", "critic")),
    *(("agents", "discriminator", part, key) for part in ("networks", "targets", "optimizers")
      for key in ("actor", "critic")),
    *(("agents", name, "random") for name in ("generator", "discriminator")),
    *(("environment", name) for name in ("random", "order", "cursor", "t", "state", "real")),
    *(("replay", name) for name in ("storage", "written", "random")),
    ("recurrent",),
    ("steps",),
]  # fmt: skip


@pytest.fixture(scope="module")
def gone_on():
    """A state saved after N steps, what follows in M steps, and the state of a stranger: other seed, N + 1 steps."""
    trainer, stranger = new_trainer(**FULL), new_trainer(seed=7, **FULL)
    run(trainer, N)
    run(stranger, N + 1)
    state = saved(trainer)
    return state, (run(trainer, M), trainer.steps), saved(stranger)


def test_the_items_are_all_that_is_saved(gone_on):
    for path in leaves(gone_on[0]):
        assert sum(path[: len(item)] == item for item in ITEMS) == 1, path


@pytest.mark.parametrize("item", ITEMS, ids="/".join)
def test_a_trainer_restored_but_for_one_item_goes_on_otherwise(gone_on, item):
    state, expected, stranger = copy.deepcopy(gone_on)
    part, other, (*above, last) = state, stranger, item
    for key in above:
        part, other = part[key], other[key]
    assert not same(part[last], other[last])
    part[last] = other[last]
    restored = new_trainer(seed=7, **FULL)
    restored.load_state_dict(state)
    assert (run(restored, M), restored.steps) != expected


@pytest.mark.parametrize("fraction", [0.0, 0.25])
def test_a_plain_gan_is_restored_exactly(fraction):
    whole, restored = (new_trainer(seed=seed, algorithm="gan", replay_fraction=fraction) for seed in (0, 7))
    run(whole, N)
    restored.load_state_dict(saved(whole))
    assert run(restored, M) == run(whole, M)
    assert same(saved(restored), saved(whole))
