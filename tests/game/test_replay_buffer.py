"""The ring: what it holds after it has wrapped, that it samples all of that and nothing else, and its saved state."""

import pytest
import torch

from magnet.game.replay_buffer import ReplayBuffer

CPU = torch.device("cpu")


def ring(capacity, seed=0):
    fields = {"number": ((), torch.int64), "picture": ((2, 3), torch.uint8)}
    return ReplayBuffer(capacity, fields, CPU, torch.Generator().manual_seed(seed))


def transitions(*numbers):
    """Transitions whose fields can be told from their numbers."""
    number = torch.tensor(numbers)
    return {"number": number, "picture": number.to(torch.uint8)[:, None, None].expand(-1, 2, 3)}


def test_a_full_ring_writes_over_its_oldest():
    replay = ring(5)
    replay.add(transitions(0, 1, 2))
    assert replay.storage["number"][:3].tolist() == [0, 1, 2] and len(replay) == 3
    replay.add(transitions(3, 4, 5))
    assert replay.storage["number"].tolist() == [5, 1, 2, 3, 4] and len(replay) == 5
    replay.add(transitions(6, 7, 8))
    assert replay.storage["number"].tolist() == [5, 6, 7, 8, 4] and len(replay) == 5


def test_as_many_transitions_as_there_are_places_fit_at_once():
    replay = ring(4)
    replay.add(transitions(1, 2))
    replay.add(transitions(3, 4, 5, 6))
    assert sorted(replay.storage["number"].tolist()) == [3, 4, 5, 6]


def test_shapes_and_dtypes_are_those_of_the_fields():
    replay = ring(5)
    replay.add(transitions(7, 8))
    sample = replay.sample(3)
    assert sample["number"].shape == (3,) and sample["number"].dtype == torch.int64
    assert sample["picture"].shape == (3, 2, 3) and sample["picture"].dtype == torch.uint8


def test_the_fields_of_a_sampled_transition_belong_together():
    replay = ring(8)
    replay.add(transitions(*range(1, 7)))
    sample = replay.sample(50)
    assert (sample["picture"] == sample["number"][:, None, None]).all()


def test_a_sample_is_a_copy():
    replay = ring(3)
    replay.add(transitions(1, 2, 3))
    sample = replay.sample(6)
    replay.add(transitions(7, 8, 9))
    assert set(sample["number"].tolist()) <= {1, 2, 3}


@pytest.mark.parametrize("added", [6, 10, 23], ids=["partly filled", "full", "wrapped"])
def test_samples_are_uniform_over_what_was_written_and_not_overwritten(added):
    replay = ring(10)
    for number in range(1, added + 1):
        replay.add(transitions(number))
    held = list(range(max(1, added - 9), added + 1))
    counts = torch.bincount(replay.sample(1000 * len(held))["number"], minlength=added + 1)
    assert counts.nonzero().flatten().tolist() == held
    assert counts[held].min() > 850 and counts[held].max() < 1150  # 1000 each, standard deviation below 32


def test_an_empty_ring_gives_no_rows():
    sample = ring(5).sample(3)
    assert sample["number"].shape == (0,) and sample["picture"].shape == (0, 2, 3)


def test_a_ring_of_no_places_gives_no_rows():
    assert ring(0).sample(3)["picture"].shape == (0, 2, 3)


def go_on(replay):
    """The numbers of what `replay` gives before and after two more transitions."""
    before = replay.sample(20)["number"].tolist()
    replay.add(transitions(50, 51))
    return before, replay.sample(20)["number"].tolist()


@pytest.mark.parametrize("added", [0, 3, 5, 13], ids=["empty", "partly filled", "full", "wrapped"])
def test_a_restored_ring_goes_on_identically(added):
    replay, restored = ring(5, seed=1), ring(5, seed=2)
    for number in range(added):
        replay.add(transitions(number))
    replay.sample(4)  # its random generator moves on
    saved = replay.state_dict()
    expected = go_on(replay)
    restored.load_state_dict(saved)
    assert len(restored) == min(added, 5)
    assert go_on(restored) == expected


def test_the_saved_state_holds_the_filled_part_alone():
    replay = ring(1000)
    replay.add(transitions(1, 2, 3))
    assert replay.state_dict()["storage"]["number"].tolist() == [1, 2, 3]
    assert replay.state_dict()["storage"]["picture"].untyped_storage().nbytes() == 3 * 2 * 3


def test_the_last_transitions_are_completed_and_drawn_behind_the_others():
    replay = ring(5)
    replay.add(transitions(0, 1, 2))
    replay.add({"number": torch.tensor([3, 4, 5])})  # over the end of the ring; pictures follow
    replay.complete({"picture": transitions(3, 4, 5)["picture"]})
    sample = replay.sample(20, latest=3)
    assert sample["number"][20:].tolist() == [3, 4, 5] and set(sample["number"][:20].tolist()) <= {1, 2, 3, 4, 5}
    assert (sample["picture"] == sample["number"][:, None, None]).all()
    assert ring(5).sample(4, latest=3)["number"].shape == (0,)
