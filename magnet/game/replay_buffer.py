"""The replay buffer: past transitions, from which each update takes rows (Lowe et al. 2017, algorithm 1).

It stores no rewards by D_a, which would be out of date. It stores extra rewards (extra_rewards.py), since they depend
on the stored images alone.
"""

import torch
from torch import Tensor

from magnet.support.random_streams import restore


class ReplayBuffer:
    """The last `capacity` transitions, on `device`.

    fields: name -> (shape, dtype) of one transition's tensors. random: the buffer's own random generator, on `device`.
    """

    def __init__(self, capacity: int, fields: dict[str, tuple], device: torch.device, random: torch.Generator):
        self.capacity, self.device, self.random = capacity, device, random
        self.storage = {
            name: torch.zeros(capacity, *shape, dtype=dtype, device=device) for name, (shape, dtype) in fields.items()
        }
        self.written = 0  # transitions ever added

    def __len__(self) -> int:
        return min(self.written, self.capacity)

    def add(self, transitions: dict[str, Tensor]) -> None:
        """Writes B <= capacity transitions, tensors (B, ...). A full buffer overwrites its oldest ones."""
        count = len(next(iter(transitions.values())))
        self.written += count
        self.added = self._latest(count)
        self.complete(transitions)

    def _latest(self, count: int) -> Tensor:
        return torch.arange(self.written - count, self.written, device=self.device) % self.capacity

    def complete(self, fields: dict[str, Tensor]) -> None:
        """Writes fields (B, ...) of the B transitions that were added last."""
        for name, rows in fields.items():
            self.storage[name][self.added] = rows

    def sample(self, count: int, latest: int = 0) -> dict[str, Tensor]:
        """`count` transitions, drawn uniformly with replacement: tensors (count, ...); none from an empty buffer.

        latest: append this many of the transitions that were added last.
        """
        count = count if len(self) else 0
        places = torch.randint(max(len(self), 1), (count,), generator=self.random, device=self.device)
        if latest:
            places = torch.cat([places, self._latest(min(latest, len(self)))])
        return {name: rows[places] for name, rows in self.storage.items()}

    def state_dict(self) -> dict:
        """The filled part, the counter and the random state."""
        filled = {name: rows[: len(self)].clone() for name, rows in self.storage.items()}
        return {"storage": filled, "written": self.written, "random": self.random.get_state()}

    def load_state_dict(self, saved: dict) -> None:
        """Restores what `state_dict` of a buffer of the same capacity returned."""
        self.written = saved["written"]
        restore(self.random, saved["random"])
        for name, rows in self.storage.items():
            rows[: len(self)] = saved["storage"][name]
