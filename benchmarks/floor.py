"""The floor of the trainer's step: the passes that the algorithm needs through each network, and nothing else.

A network is used with some rows for some end: a forward pass, and the gradients that are asked for. What is left out of
the floor is all that is no pass of a network: optimizers, targets' averages, the environment, the replay buffer,
returns, metrics. A step with R1 has another floor than one without, so step and floor are compared over the steps after
which they repeat: R1's `period`.
"""

import itertools
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from magnet.agents.batch import Batch
from magnet.agents.discriminator import critic_inputs
from magnet.agents.generator import image_logits
from magnet.maddpg import MADDPG

FORWARD, TO_INPUTS, TO_PARAMETERS, DOUBLE = KINDS = "forward", "to inputs", "to parameters", "double backward"


@dataclass
class Use:
    """One use of a network: `forward`, then the gradients of its outputs that are asked for."""

    network: str  # G_a, G, G_c, D_a, D_c; a target network has a dash
    end: str  # what for
    rows: int
    forward: Callable[[], Tensor]
    at: Tensor | None = None  # an input, if the gradient there is asked for
    parameters: list[Tensor] = field(default_factory=list)  # those that learn from this use
    penalty: bool = False  # whether the parameters learn from the gradient at the input,
    output: bool = True  # and whether from the output itself

    def passes(self) -> Iterator[str]:
        """Makes the passes one by one; yields the kind of each when it is made."""
        wanted = [*self.parameters, *([] if self.at is None or self.penalty else [self.at])]
        with torch.set_grad_enabled(bool(wanted)):
            outputs = [self.forward()]
        yield FORWARD
        if self.penalty:
            gradient = torch.autograd.grad(outputs[0].sum(), self.at, create_graph=True)
            outputs = [*outputs, *gradient] if self.output else gradient
            yield TO_INPUTS
        if wanted:
            torch.autograd.grad(outputs, wanted, [torch.ones_like(x) for x in outputs], allow_unused=True)
            yield DOUBLE if self.penalty else TO_PARAMETERS if self.parameters else TO_INPUTS


def period(config) -> int:
    """Steps after which the passes repeat: every k-th has R1."""
    return config.r1_every if config.r1 else 1


def steps(trainer: MADDPG) -> int:
    """Makes the steps of one period; returns how many."""
    count = period(trainer.config)
    for _ in range(count):
        trainer.step()
    return count


def leaf(tensor: Tensor) -> Tensor:
    """The same values without their graph, as an input at which a gradient can be asked for."""
    return tensor.detach().requires_grad_()


def floor(trainer: MADDPG, r1: bool) -> list[Use]:
    """All uses of networks in one step of `trainer`, with R1 or without.

    They run on the trainer's own networks (BatchNorm's statistics and the trainer's random numbers move on) and on a
    batch of its own game, whose replay buffer must have been filled by at least one step.
    """
    config = trainer.config
    with torch.no_grad():
        batch = trainer.collect(trainer.replay.sample(trainer.replayed_rows))
        trainer.act(batch)
    trainer.play(batch)
    return list(
        itertools.chain(
            of_acting(trainer, batch),
            of_targets(trainer, batch) if config.gamma else [],
            of_discriminators(trainer, batch, r1),
            of_generators(trainer, batch),
        )
    )


def floors(trainer: MADDPG) -> list[list[Use]]:
    """The floor of each step of one period: the first with R1, the others without."""
    steps = period(trainer.config)
    return [floor(trainer, trainer.config.r1 > 0)] + (steps - 1) * [floor(trainer, False)]


def of_acting(trainer: MADDPG, batch: Batch) -> Iterator[Use]:
    """G_a acts and G makes its images, once for all B rows; both learn by these passes. A plain GAN's G has noise."""
    for i, agent in enumerate(trainer.generators):
        z = torch.randn(len(batch.state), trainer.config.nz, device=trainer.device)
        if "actor" in agent.networks:
            actor, memory = agent.networks["actor"], batch.acts[i].recurrent  # of the next state: any will do
            parameters = list(actor.parameters())
            yield Use("G_a", "acts", len(z), lambda a=actor, h=memory: a(batch.state, h)[0], parameters=parameters)
            z.requires_grad_()
        generator = agent.networks["generator"]
        yield Use(
            "G", "makes images", len(z), lambda g=generator, z=z: g(z),
            at=z if z.requires_grad else None, parameters=list(generator.parameters()),
        )  # fmt: skip


def of_discriminators(trainer: MADDPG, batch: Batch, r1: bool) -> Iterator[Use]:
    """D_a's pass over real images (R1 asks its gradient there) and each generator's; D_c values its logits."""
    for j, agent in enumerate(trainer.discriminators):
        network = agent.networks["actor"]
        parameters, real, played = list(network.parameters()), batch.real.detach(), batch.fakes
        at = leaf(real) if r1 else None
        yield Use(
            "D_a", "real, R1" if r1 else "real", len(real), lambda d=network, x=real if at is None else at: d(x),
            at=at, parameters=parameters, penalty=r1,
        )  # fmt: skip
        for fake in played:
            yield Use("D_a", "fake", len(fake), lambda d=network, x=fake: outputs_of(d, x), parameters=parameters)
        penalised = [leaf(fake) for fake in played] if trainer.config.r2 else []
        penalised += [leaf(torch.cat(played))] if trainer.config.gradient_penalty else []
        for images in penalised:
            yield Use("D_a", "penalty", len(images), lambda d=network, x=images: d(x), images, parameters, True, False)
        if agent.critic:
            features, actions = map(Tensor.detach, critic_inputs(batch.outputs[j]))
            yield from of_critic("D_c", "teaches D_a", agent.critic, features, actions)


def of_generators(trainer: MADDPG, batch: Batch) -> Iterator[Use]:
    """Each D_a, frozen, on G's images; G_c values these."""
    networks = [agent.networks["actor"] for agent in trainer.discriminators]
    if trainer.config.returns == "relativistic":  # D_a has learned since its pass over these
        for network in networks:
            yield Use("D_a", "real, beside G's", len(batch.real), lambda d=network: d(batch.real.detach()))
    for i, agent in enumerate(trainer.generators):
        images = leaf(batch.images[i])
        for network in networks:
            yield Use(
                "D_a", "teaches G", len(images),
                lambda d=network, x=images: outputs_of(d, x), at=images,
            )  # fmt: skip
        if agent.critic:
            logits = image_logits(batch.outputs, i).detach()
            yield from of_critic("G_c", "teaches G_a and G", agent.critic, batch.acts[i].embedding, logits)


def of_critic(name: str, end: str, critic: nn.Module, features: Tensor, actions: Tensor) -> Iterator[Use]:
    """It learns the values of some actions; then it is frozen, and an actor follows its gradient in others."""
    parameters, at = list(critic.parameters()), leaf(actions)
    yield Use(name, "learns values", len(features), lambda: critic(features, actions), parameters=parameters)
    yield Use(name, end, len(features), lambda: critic(features, at), at=at)


def of_targets(trainer: MADDPG, batch: Batch) -> Iterator[Use]:
    """With gamma > 0 the targets' forward passes: what they would do next, and its value."""
    state, made = batch.real.detach(), []
    for i, agent in enumerate(trainer.generators):
        actor, generator, memory = agent.targets["actor"], agent.targets["generator"], batch.acts[i].recurrent
        z = torch.randn(len(state), trainer.config.nz, device=trainer.device)
        made.append(batch.images[i].detach())
        yield Use("G_a'", "next", len(state), lambda a=actor, h=memory: a(state, h)[0])
        yield Use("G'", "next", len(state), lambda g=generator, z=z: g(z))
    if any(agent.critic for agent in trainer.discriminators):
        made.append(trainer.environment.following(batch.transitions)[1])
    for agent in trainer.discriminators:
        for images in made:
            yield Use("D_a'", "next", len(images), lambda d=agent.targets["actor"], x=images: d(x))
    for i, agent in enumerate(trainer.generators):
        if agent.critic:
            logits, critic = image_logits(batch.outputs, i).detach(), agent.targets["critic"]
            yield Use("G_c'", "next", len(logits), lambda q=critic, s=batch.acts[i].embedding, a=logits: q(s, a))
    for agent, outputs in zip(trainer.discriminators, batch.outputs, strict=True):
        if agent.critic:
            features, actions = map(Tensor.detach, critic_inputs(outputs))
            critic = agent.targets["critic"]
            yield Use("D_c'", "next", len(features), lambda q=critic, x=features, a=actions: q(x, a))


def outputs_of(network: nn.Module, images: Tensor) -> Tensor:
    """All that D_a gives and others learn from: logits (B, 1), with its classes if there are some."""
    _, logits, classes = network.discriminate(images)
    return torch.cat([logits[:, None], *([] if classes is None else [classes])], dim=1)
