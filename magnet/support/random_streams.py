"""Random numbers: each part of a run has its own generator, so no part changes the numbers of another."""

import random

import torch


def derived_seed(seed: int, name: str) -> int:
    """Derives a seed of 63 bits for the part `name` of a run. It differs between names and between seeds."""
    return random.Random(f"{seed}/{name}").getrandbits(63)


def stream(seed: int, name: str, device: torch.device | str = "cpu") -> torch.Generator:
    """Makes the generator of the part `name`, on `device`."""
    return torch.Generator(device).manual_seed(derived_seed(seed, name))


def restore(generator: torch.Generator, state: torch.Tensor) -> None:
    """Sets `generator` to a saved state.

    The state of a CPU's generator does not fit a GPU's. A run that changes from one to the other draws fresh numbers,
    from a seed that no part had before.
    """
    if state.shape == generator.get_state().shape:
        generator.set_state(state.cpu())
    else:
        generator.manual_seed(derived_seed(generator.initial_seed(), "another device"))
