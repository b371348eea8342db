"""The replay buffer: what it holds when it is full, that it samples all of that and nothing else, its saved state."""

import pytest
import torch

from magnet.game.replay_buffer import ReplayBuffer

CPU = torch.device("cpu")


def new_buffer(capacity, *numbers, seed=0):
    """A buffer with the transitions of `numbers`, which were added one by one."""
    fields = {"number": ((), torch.int64), "picture": ((2, 3), torch.uint8)}
    buffer = ReplayBuffer(capacity, fields, CPU, torch.Generator().manual_seed(seed))
    for number in numbers:
        buffer.add(transitions(number))
    return buffer


def transitions(*numbers):
    """Transitions whose pictures show their numbers."""
    number = torch.tensor(numbers)
    return {"number": number, "picture": number.to(torch.uint8)[:, None, None].expand(-1, 2, 3)}


def test_a_full_buffer_overwrites_its_oldest_transitions():
    buffer = new_buffer(5)
    for added, stored in (
        ((0, 1, 2), [0, 1, 2, 0, 0]), ((3, 4, 5), [5, 1, 2, 3, 4]), ((6, 7, 8), [5, 6, 7, 8, 4]),
        ((1, 2, 3, 4, 5), [2, 3, 4, 5, 1]),
    ):  # fmt: skip
        buffer.add(transitions(*added))
        assert buffer.storage["number"].tolist() == stored and len(buffer) == min(5, buffer.written)


def test_a_sample_copies_whole_transitions():
    buffer = new_buffer(6, *range(1, 7))
    sample = buffer.sample(50)
    buffer.add(transitions(*range(7, 13)))
    assert sample["number"].shape == (50,) and sample["number"].dtype == torch.int64
    assert sample["picture"].shape == (50, 2, 3) and sample["picture"].dtype == torch.uint8
    assert (sample["picture"] == sample["number"][:, None, None]).all() and sample["number"].max() <= 6


@pytest.mark.parametrize("added", [6, 10, 23], ids=["partly filled", "full", "overwritten"])
def test_samples_are_uniform_over_what_the_buffer_holds(added):
    stored = list(range(max(1, added - 9), added + 1))
    numbers = new_buffer(10, *range(1, added + 1)).sample(1000 * len(stored))["number"]
    counts = torch.bincount(numbers, minlength=added + 1)
    assert counts.nonzero().flatten().tolist() == stored
    assert counts[stored].min() > 850 and counts[stored].max() < 1150  # 1000 each, standard deviation below 32


@pytest.mark.parametrize(("capacity", "latest"), [(5, 0), (5, 3), (0, 0)])
def test_an_empty_buffer_gives_no_rows(capacity, latest):
    sample = new_buffer(capacity).sample(3, latest=latest)
    assert sample["number"].shape == (0,) and sample["picture"].shape == (0, 2, 3)


def test_the_latest_transitions_are_completed_and_appended_to_a_sample():
    buffer = new_buffer(5, 0, 1, 2)
    buffer.add({"number": torch.tensor([3, 4, 5])})  # over the end of the buffer; the pictures follow
    buffer.complete({"picture": transitions(3, 4, 5)["picture"]})
    sample = buffer.sample(20, latest=3)
    assert sample["number"][20:].tolist() == [3, 4, 5] and set(sample["number"][:20].tolist()) <= {1, 2, 3, 4, 5}
    assert (sample["picture"] == sample["number"][:, None, None]).all()


def go_on(buffer):
    """The numbers of what `buffer` samples before and after two more transitions."""
    before = buffer.sample(20)["number"].tolist()
    buffer.add(transitions(50, 51))
    return before, buffer.sample(20)["number"].tolist()


@pytest.mark.parametrize("added", [0, 3, 5, 13], ids=["empty", "partly filled", "full", "overwritten"])
def test_a_restored_buffer_goes_on_identically(added):
    buffer, restored = new_buffer(5, *range(added), seed=1), new_buffer(5, seed=2)
    buffer.sample(4)  # changes its random state
    saved = buffer.state_dict()
    assert len(saved["storage"]["number"]) == min(added, 5), "it holds the filled part alone"
    assert saved["storage"]["picture"].untyped_storage().nbytes() == min(added, 5) * 2 * 3
    expected = go_on(buffer)
    restored.load_state_dict(saved)
    assert len(restored) == min(added, 5)
    assert go_on(restored) == expected
