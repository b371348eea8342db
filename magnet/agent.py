"""What both kinds of agent share: networks with targets and optimizers, how they step, and how a critic is taught.

DDPG (Lillicrap et al. 2015, arXiv 1509.02971) for each agent, as in MADDPG (Lowe et al. 2017, arXiv 1706.02275), with
changes (the README's differences). The two that reach deepest: critics are taught the slope of the return as well as
the return, and an actor follows lambda * dr/da + (1 - lambda) * dQ/da, not dQ/da alone (`returns.ascent_direction`).
"""

import copy
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from magnet import returns
from magnet.distributed import average, own, size, whole
from magnet.networks import image_stack, point_stack
from magnet.randomness import restore, stream

Metrics = dict[str, Tensor]


@contextmanager
def frozen(modules: Iterable[nn.Module]) -> Iterator[None]:
    """Within, no parameter of `modules` gets a gradient; gradients still pass through to what they judge."""
    parameters = [p for module in modules for p in module.parameters() if p.requires_grad]
    for p in parameters:
        p.requires_grad_(False)
    try:
        yield
    finally:
        for p in parameters:
            p.requires_grad_(True)


@torch.no_grad()
def soft_update(target: nn.Module, online: nn.Module, tau: float) -> None:
    """target <- tau * online + (1 - tau) * target; BatchNorm's statistics are copied, they are averages already."""
    torch._foreach_lerp_(list(target.parameters()), list(online.parameters()), tau)
    for moved, source in zip(target.buffers(), online.buffers(), strict=True):
        moved.copy_(source)


def logit_slope(generator: nn.Module, judges: list[nn.Module], z: Tensor, first: int = 0) -> Tensor:
    """dl/dz (B, nz) of the judges' mean logit on G(z), z (B, nz), of which the first `first` pass by themselves.

    No parameter gets a gradient.
    """
    z = z.detach().requires_grad_()
    with frozen([generator, *judges]):
        images = generator(z, first)
        logits = torch.stack([judge(images, first) for judge in judges]).mean(dim=0)
    return torch.autograd.grad(logits.sum(), z)[0]


class Agent:
    """What both kinds share: networks by name, a target and an optimizer for each, random numbers of their own.

    In an update the actor follows the critic as it stood before the critic's own step of that update, so that one pass
    through the critic's convolutions serves both. (Algorithm 1 takes the step first.)
    """

    def __init__(
        self, name: str, config, device: torch.device, networks: dict[str, nn.Module],
        borrowed: Iterable[nn.Parameter] = (),
    ):  # fmt: skip
        """borrowed: parameters within `networks` that are another agent's, whose optimizer moves them."""
        self.name, self.config, self.device = name, config, device
        self.random = stream(config.seed, name, device)
        targets = {key: copy.deepcopy(net).requires_grad_(False) for key, net in networks.items()}
        place = {"device": device, "memory_format": torch.channels_last}
        self.networks = {key: net.to(**place) for key, net in networks.items()}
        self.targets = {key: net.to(**place) for key, net in targets.items()}
        borrowed = set(borrowed)
        self.own = {key: [p for p in net.parameters() if p not in borrowed] for key, net in self.networks.items()}
        self.optimizers = {
            key: torch.optim.Adam(own, lr=config.lr, betas=(config.beta1, config.beta2), fused=True)
            for key, own in self.own.items()
        }

    def drawn(self, how: Callable[..., Tensor], rows: int, *shape: int) -> Tensor:
        """Random numbers (rows, *shape) by `how`, torch.randn or torch.rand.

        Of several processes each draws those of the whole batch, so that their generators stay alike.
        """
        return own(how(size() * rows, *shape, generator=self.random, device=self.device))

    def descend(self, key: str) -> Tensor:
        """One optimizer step on the gradients that `key` holds, which are then cleared. Returns their norm, ().

        Of several processes each holds the gradient of its rows' mean; the step is on the mean over all.
        """
        average(p.grad for p in self.own[key])
        norm = nn.utils.get_total_norm(p.grad for p in self.own[key])
        self.optimizers[key].step()
        self.optimizers[key].zero_grad()
        return norm

    def update_targets(self) -> None:
        """Every target moves by tau: the last line of Algorithm 1."""
        for key, target in self.targets.items():
            soft_update(target, self.networks[key], self.config.tau)

    def state_dict(self) -> dict:
        """Networks, targets, optimizers and random state: the live tensors, to be written before the next step."""
        parts = {"networks": self.networks, "targets": self.targets, "optimizers": self.optimizers}
        saved = {part: {key: one.state_dict() for key, one in members.items()} for part, members in parts.items()}
        return saved | {"random": self.random.get_state()}

    def load_state_dict(self, saved: dict) -> None:
        """Takes over what `state_dict` gave."""
        self.load_networks(saved)
        for key, optimizer in self.optimizers.items():  # learning rate and decays are the config's
            optimizer.load_state_dict(optimizer.state_dict() | {"state": saved["optimizers"][key]["state"]})
        restore(self.random, saved["random"])

    def load_networks(self, saved: dict) -> None:
        """Of what `state_dict` gave takes the networks and targets alone, which is enough for sampling."""
        for key in self.networks:
            self.networks[key].load_state_dict(dict(saved["networks"][key]))  # without what PyTorch hides beside it
            self.targets[key].load_state_dict(dict(saved["targets"][key]))

    def teach_critic(
        self, encoded: Tensor, actions: Tensor, reward: Tensor, return_slope: Tensor, next_value: Tensor | None,
        others: Tensor | None,
    ) -> tuple[Tensor, Metrics]:  # fmt: skip
        """The critic's loss and step: value towards the TD target, slope towards the return's.

        encoded (B, hidden) by the critic, with its graph; actions and return_slope (B, A); reward and next_value (B,),
        the latter None if gamma = 0; others: what a joint critic sees beside (B, K). Returns dQ/da (B, A) as it was
        before the step, and the metrics.
        """
        actions = actions.detach().requires_grad_()
        value = self.networks["critic"].value(encoded, joint(actions, others))
        (slope,) = torch.autograd.grad(value.sum(), actions, create_graph=True)
        target = returns.td_target(reward, next_value, self.config.gamma)
        loss = returns.critic_loss(
            value=value, target=target, slope=slope, target_slope=return_slope, weight=self.config.slope_weight
        )
        loss.backward(inputs=self.own["critic"])  # and not at the actions
        slope = slope.detach()
        return slope, {
            "td_error": (value.detach() - target).square().mean(),
            "slope_cosine": returns.slope_cosine(whole(slope), whole(return_slope)),
            "critic_gradient": self.descend("critic"),
        }


def encoder(config, batch_norm: bool = True) -> tuple[nn.Module, int]:
    """Layers from an observation to features (B, F), and F: what an actor or a critic begins with."""
    if config.points:
        return point_stack(config.width)
    return image_stack(config.image_size, config.width, config.precision == "bf16", batch_norm)


def for_answers(values: Tensor, fresh: int, count: int) -> Tensor:
    """Repeats the first `fresh` rows of `values` (B, ...) for `count` answers; the others, replayed, had one each.

    -> (count * fresh + B - fresh, ...), the order in which a generator's actions stand.
    """
    return torch.cat([*[values[:fresh]] * count, values[fresh:]])


def leading(config, fresh: int) -> int:
    """How many of a generator's actions pass through G and D_a before the others: the policy's on `fresh` states.

    In one pass with noise BatchNorm would see to it that both together have the statistics of faces, and not each of
    them. The replayed actions, too few for statistics of their own, pass with the noise; all pass together (0) where
    there is one answer, in a plain GAN, whose answers are all noise, and of points, whose networks have no BatchNorm.
    """
    return fresh if config.answers > 1 and config.algorithm == "magnet" and not config.points else 0


def as_played(values: Tensor, fresh: int, batch: int) -> Tensor:
    """Of `values` (C, ...) in `for_answers`' order the first answers and the replayed ones: (B, ...), B = `batch`."""
    return torch.cat([values[:fresh], values[len(values) - (batch - fresh) :]])


def joint(actions: Tensor, others: Tensor | None) -> Tensor:
    """What a critic sees as the action: (B, A), with what the other agents do (B, K) behind it, if it sees that."""
    return actions if others is None else torch.cat([actions, others], dim=1)


def joint_actions(z: list[Tensor], logits: list[list[Tensor]], fresh: int) -> tuple[list[Tensor], list[Tensor]]:
    """What joint critics see of the other agents' actions (Lowe et al. 2017, equation 6): for generators, and for
    discriminators.

    z: each generator's (C, nz); logits: each discriminator's on real images (B,) and on each generator's (C,).
    Generator i is told the other generators' z on the same state, and all logits on its image: (C, (N - 1) nz + M).
    Discriminator j is told all z, and the others' logits on the image that it judges: (B + N C, N nz + M - 1), real
    images first; beside a real image stand the z that were played against it.
    """
    z = [one.detach() for one in z]
    judged = [torch.stack([one[k].detach() for one in logits], dim=1) for k in range(1 + len(z))]  # (B or C, M)
    to_generators = [torch.cat([*z[:i], *z[i + 1 :], judged[1 + i]], dim=1) for i in range(len(z))]
    put_forward = torch.cat(z, dim=1)
    beside = [as_played(put_forward, fresh, len(judged[0])), *[put_forward] * len(z)]
    to_discriminators = [
        torch.cat([
            torch.cat([seen, judgements[:, :j], judgements[:, j + 1 :]], dim=1)
            for seen, judgements in zip(beside, judged, strict=True)
        ])
        for j in range(len(logits))
    ]  # fmt: skip
    return to_generators, to_discriminators
