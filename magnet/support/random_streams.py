"""Random numbers: a generator of its own for each part of a run, so that no part's draws move another's."""

import random

import torch


def derived_seed(seed: int, name: str) -> int:
    """A seed for the part `name` of a run with `seed`: 63 bits, unlike those of other names and other seeds."""
    return random.Random(f"{seed}/{name}").getrandbits(63)


def stream(seed: int, name: str, device: torch.device | str = "cpu") -> torch.Generator:
    """The generator of the part `name`, on `device`."""
    return torch.Generator(device).manual_seed(derived_seed(seed, name))


def restore(generator: torch.Generator, state: torch.Tensor) -> None:
    """Sets `generator` to a saved state.

    A CPU's state means nothing to a GPU's generator: a run that changes from one to the other draws fresh numbers, from
    a seed that no part had before.
    """
    if state.shape == generator.get_state().shape:
        generator.set_state(state.cpu())
    else:
        generator.manual_seed(derived_seed(generator.initial_seed(), "another device"))
