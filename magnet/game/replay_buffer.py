"""The replay buffer: past transitions, from which each update takes a share of its batch (Lowe et al. 2017, algorithm
1).

It stores and samples, nothing more. A stored log D is stale, so the update computes it anew; extra rewards
(extra_rewards.py) are functions of the stored images alone, and are stored.
"""

import torch
from torch import Tensor

from magnet.support.random_streams import restore


class ReplayBuffer:
    """The last `capacity` transitions, on `device`.

    fields: name -> (shape, dtype) of what one transition holds. `random` is the buffer's own generator, on `device`.
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
        """Writes B <= capacity transitions, each tensor (B, ...), over the oldest ones when it is full."""
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

        latest: so many of those that were added last stand behind them, if they are there.
        """
        count = count if len(self) else 0
        places = torch.randint(max(len(self), 1), (count,), generator=self.random, device=self.device)
        if latest:
            places = torch.cat([places, self._latest(min(latest, len(self)))])
        return {name: rows[places] for name, rows in self.storage.items()}

    def state_dict(self) -> dict:
        """The filled part, its counter and its random state."""
        filled = {name: rows[: len(self)].clone() for name, rows in self.storage.items()}
        return {"storage": filled, "written": self.written, "random": self.random.get_state()}

    def load_state_dict(self, saved: dict) -> None:
        """Takes over what `state_dict` of a buffer of the same capacity gave."""
        self.written = saved["written"]
        restore(self.random, saved["random"])
        for name, rows in self.storage.items():
            rows[: len(self)] = saved["storage"][name]
