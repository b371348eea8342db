"""Random numbers: each part its own, restored exactly, or afresh on another kind of device."""

import torch

from magnet.support.random_streams import restore, stream


def test_a_stream_depends_on_its_seed_and_its_name():
    def numbers(seed, name):
        return torch.rand(4, generator=stream(seed, name)).tolist()

    assert numbers(1, "generator") == numbers(1, "generator")
    assert len({tuple(numbers(seed, name)) for seed in (1, 2, 11) for name in ("generator", "replay", "1/replay")}) == 9


def test_a_restored_stream_goes_on_where_it_was():
    first, other = stream(0, "a"), stream(1, "a")
    torch.rand(3, generator=first)
    restore(other, first.get_state())
    assert torch.equal(torch.rand(4, generator=other), torch.rand(4, generator=first))


def test_the_state_of_another_kind_of_device_gives_numbers_that_were_not_drawn_before():
    begun, restored = stream(0, "a"), stream(0, "a")
    restore(restored, torch.zeros(16, dtype=torch.uint8))  # as long as a GPU's state
    assert not torch.equal(torch.rand(4, generator=restored), torch.rand(4, generator=begun))
