"""What both agents share: networks with targets and optimizers, their steps, and how a critic learns.

DDPG (Lillicrap et al. 2015, arXiv 1509.02971) for each agent, as in MADDPG (Lowe et al. 2017, arXiv 1706.02275).
"""

import copy
import functools
import math
from collections.abc import Callable

import torch
from torch import Tensor, nn

from magnet.agents import losses
from magnet.support.distributed import all_reduce_mean, local_rows, world_size
from magnet.support.random_streams import derived_seed, restore, stream

Metrics = dict[str, Tensor]
SCALER_STATE = ("scale", "_growth_tracker")  # the parts of a GradScaler's state that steps change


@torch.no_grad()
def soft_update(target: nn.Module, online: nn.Module, tau: float) -> None:
    """target <- tau * online + (1 - tau) * target; BatchNorm's statistics are averages already and are copied.

    It takes one operation for all parameters, where a loop would launch as many kernels as there are tensors.
    """
    torch._foreach_lerp_(list(target.parameters()), list(online.parameters()), tau)
    for dtype in {buffer.dtype for buffer in target.buffers()}:
        moved, sources = ([b for b in net.buffers() if b.dtype == dtype] for net in (target, online))
        torch._foreach_copy_(moved, sources)


class Agent:
    """Networks by name, a target and an optimizer for each, and a random generator of its own."""

    makers: Callable[..., dict[str, Callable[[], nn.Module]]]  # config -> {name: function that makes the network}

    def __init__(self, name: str, config, device: torch.device, index: int = 0):
        """index: its place among the generators, or among the discriminators.

        A network's first weights depend only on the run's seed and the network's name. So all games of one seed, plain
        GANs too, start from the same G and D_a.
        """
        self.name, self.config, self.device, self.index = name, config, device, index
        self.random = stream(config.seed, name, device)
        place = {"device": device, "memory_format": torch.channels_last}
        self.networks = {}
        for key, make in self.makers(config).items():
            with torch.random.fork_rng(devices=[]):  # weights are drawn on the CPU
                torch.default_generator.manual_seed(derived_seed(config.seed, f"{name}/{key}"))
                self.networks[key] = make().to(**place)
        self.targets = {key: copy.deepcopy(net).requires_grad_(False).to(**place) for key, net in self.networks.items()}

    @functools.cached_property
    def optimizers(self) -> dict[str, torch.optim.Adam]:
        """An Adam for each network, made at the first use: its import is slow, and sampling does not need it."""
        settings = {"lr": self.config.lr, "betas": (self.config.beta1, self.config.beta2), "fused": True}
        return {key: torch.optim.Adam(net.parameters(), **settings) for key, net in self.networks.items()}

    def parameters(self, *keys: str) -> list[Tensor]:
        """The parameters of the networks `keys`, from the optimizers' lists: a module takes 0.2 ms to list its own."""
        return [p for key in keys for p in self.optimizers[key].param_groups[0]["params"]]

    @functools.cached_property
    def scaler(self) -> torch.amp.GradScaler:
        """The scale of all losses with fp16, which keeps gradients within float16's range; else it changes nothing."""
        return torch.amp.GradScaler(self.device.type, enabled=self.config.precision == "fp16")

    @property
    def critic(self) -> nn.Module | None:
        """The critic; None if the actor follows the reward itself (by --critics, or in a plain GAN)."""
        return self.networks.get("critic")

    def draw(self, sampler: Callable[..., Tensor], rows: int, *shape: int) -> Tensor:
        """Random numbers (rows, *shape) by torch.randn or torch.rand. A process draws all rows, keeps its own."""
        return local_rows(sampler(world_size() * rows, *shape, generator=self.random, device=self.device))

    def descend(self, key: str, with_metrics: bool = True) -> Metrics:
        """One optimizer step on the gradients that `key` holds, the mean over all processes.

        Returns {key + "_gradient": the gradients' norm, ()} if `with_metrics`, else {}. With fp16, gradients that are
        not finite make no step; while the scale is at least 1, their norm is returned as 0.
        """
        optimizer, parameters = self.optimizers[key], self.parameters(key)
        all_reduce_mean(p.grad for p in parameters)
        self.scaler.unscale_(optimizer)  # after the mean is taken, so that all processes skip the same steps
        metrics = {f"{key}_gradient": self.gradient_norm(parameters)} if with_metrics else {}
        self.scaler.step(optimizer)
        optimizer.zero_grad()
        return metrics

    def gradient_norm(self, parameters: list[Tensor]) -> Tensor:
        """The norm of the gradients of `parameters`: a scalar; 0 where fp16 makes no step, unless the run diverges."""
        norm = nn.utils.get_total_norm(p.grad for p in parameters)
        if self.scaler.is_enabled():
            # The infinity norm, since a sum of squares may overflow where no gradient does.
            finite = nn.utils.get_total_norm([p.grad for p in parameters], math.inf).isfinite()
            # A scale below 1 cannot be the cause of an overflow: the run diverges, and the log must show it.
            diverges = self.scaler.scale(torch.ones_like(norm)) < 1
            norm = norm.where(finite | diverges, 0.0)
        return norm

    def update_targets(self, steps: int = 1, made: int = 0) -> None:
        """Alg. 1, line 15: every target moves as far as tau would move it in `steps` steps.

        The half-life is the longer of tau's and config.average * made, where `made` counts the steps so far. So the
        average lengthens with the training (compare Karras et al. 2024, EDM2, arXiv 2312.02696, section 3.1). With
        gamma > 0 it stays tau's, because critics then bootstrap on the targets.
        """
        tau, half_life = self.config.tau, 0 if self.config.gamma else self.config.average * made
        if half_life:
            tau = min(tau, 1 - 0.5 ** (1 / half_life))
        for key, target in self.targets.items():
            soft_update(target, self.networks[key], 1 - (1 - tau) ** steps)

    def update_critic(
        self, observation: Tensor, action: Tensor, reward: Tensor, next_value: Tensor | None, key: str = "critic",
        fresh: int = 0, with_metrics: bool = True,
    ) -> Metrics:  # fmt: skip
        """Alg. 1, line 12: one step of the critic `key` by the squared TD error.

        observation (B, O) and action (B, A), as the critic takes them; reward (B,); next_value Q'(s', a') (B,), or None
        if gamma = 0. No argument has a graph. fresh: the number of last rows that no earlier step has learned from; on
        these R^2 is measured, as 1 - the mean error, since rewards have variance 1. with_metrics: as in `descend`.
        """
        target = losses.td_target(reward, next_value, self.config.gamma)  # line 11
        errors = (self.networks[key](observation, action) - target).square()
        loss = errors.mean()
        self.scaler.scale(loss).backward()
        metrics = {f"{key}_loss": loss.detach()} | self.descend(key, with_metrics)
        return metrics | ({f"{key}_r2": 1 - errors.detach()[-fresh:].mean()} if fresh else {})

    def state_dict(self) -> dict:
        """Networks, targets, optimizers and random state: live tensors, to be written before the next step."""
        parts = {"networks": self.networks, "targets": self.targets, "optimizers": self.optimizers}
        saved = {part: {key: one.state_dict() for key, one in members.items()} for part, members in parts.items()}
        if self.scaler.is_enabled():
            saved["scaler"] = {key: self.scaler.state_dict()[key] for key in SCALER_STATE}
        return saved | {"random": self.random.get_state()}

    def load_state_dict(self, saved: dict) -> None:
        """Restores what `state_dict` returned."""
        self.load_networks(saved)
        for key, optimizer in self.optimizers.items():  # learning rate and decays come from the config
            optimizer.load_state_dict(optimizer.state_dict() | {"state": saved["optimizers"][key]["state"]})
        if self.scaler.is_enabled():
            self.scaler.load_state_dict(self.scaler.state_dict() | saved["scaler"])
        restore(self.random, saved["random"])

    def load_networks(self, saved: dict) -> None:
        """Restores networks and targets alone, which is enough for sampling."""
        for key in self.networks:
            self.networks[key].load_state_dict(dict(saved["networks"][key]))  # without the attribute _metadata
            self.targets[key].load_state_dict(dict(saved["targets"][key]))
