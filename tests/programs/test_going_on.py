"""A trainer repeats, and one that was saved goes on exactly; nothing that is saved is needless."""

import copy

import pytest
import torch
from conftest import FULL, PRECISIONS, differing, leaves, new_trainer, run, same, saved, weights


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
def test_n_plus_m_steps_are_n_steps_a_restored_trainer_and_m_steps(precision):
    """tests/trainer/test_every_game.py has this test for all games. R1 counts steps since the run began."""
    config = FULL | {"precision": precision, "r1": 1.0, "r1_every": 3}
    whole, again, restored = (new_trainer(seed=seed, **config) for seed in (1, 1, 7))
    assert run(whole, N) == run(again, N)
    restored.load_state_dict(saved(whole))
    after = run(restored, M)
    assert after == run(whole, M) == run(again, M)
    assert [t for t, line in enumerate(after, N) if "discriminator/r1" in line] == [6]
    assert same(saved(restored), saved(whole)) and restored.images_seen == whole.images_seen


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
