"""The game: states are random sets of real images, and an episode is T of them.

At each step a generator observes the state s_t, and its action makes images, its guess of the next state. A
discriminator observes the real next state x_t = s_{t+1} and the generated images; its actions are logits. The reward
function (rewards.py) pays both; generators may earn an extra reward as well (extra_rewards.py). The next state does not
depend on the actions. `reset` and `step` have the form of PettingZoo's parallel games: dicts keyed by the agents' names
(parallel_env.py makes it one of them).
"""

import torch
from torch import Tensor

from magnet.config import agent_names
from magnet.data.image_dataset import ImageDataset, to_uint8
from magnet.game.extra_rewards import ExtraReward, HostCopy, RewardNormaliser
from magnet.game.rewards import reward_function
from magnet.support.distributed import all_gather_rows, is_uneven, local_rows
from magnet.support.errors import UserError


class Environment:
    """An endless supply of episodes over `dataset`.

    A state is `batch` indices in [0, 2N): i < N is image i, i >= N is image i - N mirrored (ImageDataset.batch).
    States come from a shuffled order of all the images: one pass over the data (an epoch) is N // batch states, and no
    image stands in two consecutive states. With several processes (distributed.py) each one observes its own rows; the
    indices are those of all. Raises ValueError if there are too few images for two states.

    reward: the name of a reward function (rewards.py).
    extra: a second reward of the generators. `step` standardises it and adds `extra_weight` times that to the first.
    """

    # A transition's images, as indices (batch,) int64: of s_t, of x_t and of x_{t+1}.
    fields = dict.fromkeys(("state", "real", "next_real"), ((), torch.int64))

    def __init__(
        self, dataset: ImageDataset, batch: int, episode_length: int, generators: list[str], discriminators: list[str],
        reward: str = "log", extra: ExtraReward | None = None, extra_weight: float = 1.0,
    ):  # fmt: skip
        if len(dataset) < 2 * batch:
            raise ValueError(f"{len(dataset)} images are too few for two states of {batch} different images")
        self.dataset, self.batch, self.episode_length = dataset, batch, episode_length
        self.generators, self.discriminators, self.reward_function = generators, discriminators, reward_function(reward)
        self.random = torch.Generator()
        self.extra, self.extra_weight, self.normaliser, self.pending_images = extra, extra_weight, None, None
        if extra:  # "extra": the reward of each generator's image, before it is standardised
            self.fields = self.fields | {"extra": ((len(generators),), torch.float32)}
            self.normaliser = RewardNormaliser(dataset.device)

    def reset(self, seed: int | None = None) -> dict[str, Tensor]:
        """Begins an episode. A seed, needed at the first call, restarts all episodes. Returns the first observations.

        Every generator observes the state s_t, every discriminator the real next state x_t: (B, 3, S, S) in [-1, 1].
        """
        if seed is not None:
            self.random.manual_seed(seed)
            self._take_order(torch.empty(0, dtype=torch.int64))
            self.cursor = 0
            self.real = self._draw()
            self._advance()
        self.t = 0  # the last episode's real next state begins this one, so that no image is left out
        return self._observations()

    def step(
        self, actions: dict[str, Tensor], wait: bool = True
    ) -> tuple[dict[str, Tensor], dict[str, Tensor], dict[str, bool], dict[str, bool], dict[str, Tensor]]:
        """Plays one step: observations, rewards, terminated, truncated, info.

        actions: each generator's images (B, 3, S, S); each discriminator's logits (1 + generators, B), as `rewards`
        takes them. Rewards are (B,). No episode terminates; all are truncated after T steps. info: the transitions,
        with all of `fields`. wait: compute the extra reward before returning, which waits for a GPU. Without it,
        rewards and info lack the extra reward, and `compute_pending_rewards` returns it later.
        """
        rewards = self.rewards(torch.stack([actions[name] for name in self.discriminators]))
        info = {"state": self.state, "real": self.real}
        self._advance()
        info["next_real"] = self.real
        if self.extra:
            state, _ = self.recall({name: local_rows(rows) for name, rows in info.items()})
            images = torch.stack([actions[name] for name in self.generators], dim=1)  # (B, generators, 3, S, S)
            self.pending_images = HostCopy(state, images)
            if wait:
                info["extra"] = self.compute_pending_rewards()
                for name, extra in zip(self.generators, self.normaliser.standardise(info["extra"]).T, strict=True):
                    rewards[name] = rewards[name] + self.extra_weight * local_rows(extra)
        self.t += 1
        everyone = self.generators + self.discriminators
        terminated, truncated = (dict.fromkeys(everyone, end) for end in (False, self.t >= self.episode_length))
        return self._observations(), rewards, terminated, truncated, info

    def rewards(self, logits: Tensor) -> dict[str, Tensor]:
        """The reward of each agent, (B,), by the discriminators' logits (discriminators, 1 + generators, B).

        Each discriminator has first the logits on the real images, then those on each generator's images. A generator's
        reward is the mean over the discriminators; a discriminator's is the mean over the generators. The function
        depends on its arguments alone, because the update calls it too, perhaps within a CUDA graph.
        """
        real, fake = logits[:, :1], logits[:, 1:]
        generators = self.reward_function.generator(fake, real).mean(dim=0)
        discriminators = self.reward_function.discriminator(real, fake).mean(dim=1)
        return dict(zip(self.generators, generators, strict=True)) | dict(
            zip(self.discriminators, discriminators, strict=True)
        )

    def compute_pending_rewards(self) -> Tensor | None:
        """The extra rewards of the last step, (B, generators), of all processes; None if they were computed before.

        The normaliser is updated with them. Raises UserError if the function fails.
        """
        if self.pending_images is None:
            return None
        states, images = map(to_uint8, self.pending_images.wait())
        self.pending_images = None
        rewards = torch.stack([self.extra(states, of_one) for of_one in images.unbind(dim=1)], dim=1)
        rewards = all_gather_rows(rewards.to(self.dataset.device, non_blocking=True))
        self.normaliser.update(rewards)
        return rewards

    def recall(self, transitions: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
        """s_t and x_t (B, 3, S, S) of transitions: the observations of generators and discriminators."""
        return self._images(transitions["state"], transitions["real"])

    def next_observations(self, transitions: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
        """s_{t+1} and x_{t+1} (B, 3, S, S) of transitions. The next state is x_t, whatever the actions."""
        return self._images(transitions["real"], transitions["next_real"])

    def _advance(self) -> None:
        """Makes the real next state the state, and draws a new real next state."""
        self.state, self.real = self.real, self._draw()

    def _observations(self) -> dict[str, Tensor]:
        state, real = self._images(local_rows(self.state), local_rows(self.real))
        return dict.fromkeys(self.generators, state) | dict.fromkeys(self.discriminators, real)

    def _images(self, first: Tensor, second: Tensor) -> tuple[Tensor, Tensor]:
        """The images of two sets of indices (B,): (B, 3, S, S) each, gathered at once."""
        return self.dataset.batch(torch.cat([first, second])).chunk(2)

    def _draw(self) -> Tensor:
        """The indices (B,) of a new state, on the data set's device."""
        if self.cursor + self.batch > len(self.order):
            order = torch.randperm(len(self.dataset), generator=self.random)
            # The images of the latest state move to the end, so that no image stands in two consecutive states.
            latest = torch.isin(order, self.order[max(0, self.cursor - self.batch) : self.cursor] % len(self.dataset))
            order = torch.cat([order[~latest], order[latest]])
            mirrored = torch.randint(2, order.shape, generator=self.random)
            self._take_order(order + mirrored * len(order))
            self.cursor = 0
        self.cursor += self.batch
        return self._indices[self.cursor - self.batch : self.cursor]

    def _take_order(self, order: Tensor) -> None:
        """Keeps a shuffled order (N,) on the CPU and copies it to the data set's device without waiting."""
        self.order = order.cpu()
        pinned = self.order.pin_memory() if self.dataset.device.type == "cuda" else self.order
        self._indices = pinned.to(self.dataset.device, non_blocking=True)

    def state_dict(self) -> dict:
        """Everything that later episodes depend on: tensors and plain types."""
        saved = {name: getattr(self, name).clone() for name in ("order", "state", "real")}
        if self.extra:
            saved |= {"extra": self.extra.digest, "normaliser": self.normaliser.state_dict()}
        return saved | {"random": self.random.get_state(), "cursor": self.cursor, "t": self.t}

    def load_state_dict(self, saved: dict) -> dict[str, Tensor]:
        """Restores what `state_dict` returned, and returns the observations there."""
        self.random.set_state(saved["random"].cpu())
        self._take_order(saved["order"])
        for name in ("state", "real"):
            setattr(self, name, saved[name].to(self.dataset.device))
        self.cursor, self.t, self.pending_images = saved["cursor"], saved["t"], None
        if self.extra:
            self.normaliser.load_state_dict(saved["normaliser"])
        return self._observations()


def new_rows(config, batch_size: int) -> int:
    """The number of rows of a batch that are not replayed."""
    return batch_size - round(config.replay_fraction * batch_size)


def refuse_too_few(config, images: int) -> None:
    """Raises UserError if `images`, a number, is too small for two states. The message names a smaller --batch-size."""

    def needed(batch_size: int) -> int:
        return 2 * new_rows(config, batch_size)

    if images >= needed(config.batch_size):
        return
    smaller = [size for size in range(4, config.batch_size) if needed(size) >= 4 and not is_uneven(config, size)]
    fitting = [size for size in smaller if needed(size) <= images]
    powers_of_two = [size for size in fitting if size & (size - 1) == 0]
    if fitting:
        reason = f"--batch-size {config.batch_size}, which needs {needed(config.batch_size)}"
        remedy = f"`--batch-size {max(powers_of_two or fitting)}` or more images"
    else:
        reason, remedy = "any --batch-size", f"at least {min(map(needed, [*smaller, config.batch_size]))}"
    raise UserError(f"{config.data}: {images} images are too few for {reason}: give {remedy}.")


def new_environment(config, dataset: ImageDataset, extra: ExtraReward | None = None) -> Environment:
    """The game of `config`; its states are the rows of a batch that are not replayed.

    extra: the loaded config.extra_reward. Raises ValueError if one of the two is missing.
    """
    if bool(config.extra_reward) != bool(extra):
        raise ValueError(f"the config names the extra reward {config.extra_reward!r}, but the function is {extra}")
    batch = new_rows(config, config.batch_size)
    names = agent_names(config)
    return Environment(
        dataset, batch, config.episode_length, *names, reward=config.reward_function, extra=extra,
        extra_weight=config.extra_weight,
    )  # fmt: skip
