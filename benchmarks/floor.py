"""The floor of the trainer's step: the passes that the algorithm needs through each network, and nothing else.

A network is used with some rows for some end: a forward pass, and what is asked of it backward. What is left out of the
floor is all that is no pass of a network: optimizers, targets' averages, the environment, the ring, returns, metrics.
"""

import itertools
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import torch
from torch import Tensor

from magnet.agent import for_answers, joint, leading
from magnet.maddpg import MADDPG, Batch

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
    slope: bool = False  # whether the parameters learn from the gradient at the input,
    output: bool = True  # and whether from the output itself

    def passes(self) -> Iterator[str]:
        """Makes the passes one by one; yields the kind of each when it is made."""
        wanted = [*self.parameters, *([] if self.at is None or self.slope else [self.at])]
        with torch.set_grad_enabled(self.slope or bool(wanted)):
            outputs = [self.forward()]
        yield FORWARD
        if self.slope:
            slope = torch.autograd.grad(outputs[0].sum(), self.at, create_graph=True)
            outputs = [*outputs, *slope] if self.output else slope
            yield TO_INPUTS
        if wanted:
            torch.autograd.grad(outputs, wanted, [torch.ones_like(x) for x in outputs], allow_unused=True)
            yield DOUBLE if self.slope else TO_PARAMETERS if self.parameters else TO_INPUTS


def leaf(tensor: Tensor) -> Tensor:
    """The same values without their graph, as an input at which a gradient can be asked for."""
    return tensor.detach().requires_grad_()


def floor(trainer: MADDPG) -> list[Use]:
    """All uses of networks in one step of `trainer`, whose ring must have been filled by at least one step.

    They run on the trainer's own networks (BatchNorm's statistics and the trainer's random numbers move on) and on a
    batch of its own game.
    """
    batch = trainer.act(trainer.replay.sample(trainer.replayed))
    told, next_uses = trainer.others(batch.z, batch.logits), []
    if trainer.config.gamma and trainer.config.algorithm != "gan":
        next_uses = list(of_targets(trainer, batch))
    uses = []
    for left in reversed(range(trainer.config.discriminator_steps)):
        uses += itertools.chain(
            of_acting(trainer, batch, learning=not left),
            of_discriminators(trainer, batch, told),
            [] if left else of_generators(trainer, batch, told),
            next_uses,
        )
    return uses


def of_acting(trainer: MADDPG, batch: Batch, learning: bool) -> Iterator[Use]:
    """G_a answers the states, answers go up the slope of D_a's logit, G paints; learning: whether generators will."""
    for i, agent in enumerate(trainer.generators):
        fresh, answers = len(batch.policy[i]), batch.answers[i].detach()
        painter, first = agent.networks["generator"], leading(trainer.config, fresh)
        if "actor" in agent.networks:
            actor, state, memory = agent.networks["actor"], batch.state[:fresh], trainer.memories[i]
            parameters = list(actor.parameters()) if learning else []
            yield Use("G_a", "acts", fresh, lambda g=actor, s=state, h=memory: g(s, h)[0], parameters=parameters)
        if trainer.config.latent_step:
            tried, painted = leaf(answers), leaf(batch.images[i][: len(answers)])
            yield Use("G", "latent step", len(tried), lambda g=painter, z=tried, n=first: g(z, n), at=tried)
            for judge in judges(trainer):
                yield Use("D_a", "latent step", len(tried), lambda d=judge, x=painted, n=first: d(x, n), at=painted)
        z = leaf(batch.z[i])
        yield Use(
            "G", "paints", len(z), lambda g=painter, z=z, n=first: g(z, n),
            at=z if learning else None, parameters=list(painter.parameters()) if learning else [],
        )  # fmt: skip


def of_discriminators(trainer: MADDPG, batch: Batch, told: dict[str, Tensor | None]) -> Iterator[Use]:
    """D_a judges real images (R1 asks its slope there in the same pass) and each generator's; D_c values that."""
    config, first = trainer.config, leading(trainer.config, len(batch.policy[0]))
    for j, agent in enumerate(trainer.discriminators):
        judge = agent.networks["actor"]
        parameters, real, fakes = list(judge.parameters()), leaf(batch.real), batch.fakes
        yield Use(
            "D_a", "real, R1" if config.r1 else "real", len(real), lambda d=judge, x=real: d(x),
            at=real if config.r1 else None, parameters=parameters, slope=config.r1 > 0,
        )  # fmt: skip
        for fake in fakes:
            yield Use("D_a", "fake", len(fake), lambda d=judge, x=fake: judged(d, x, first), parameters=parameters)
        penalised = [leaf(fake[: len(real)]) for fake in fakes] if config.r2 else []
        penalised += [leaf(torch.cat([x[: len(real)] for x in fakes]))] if config.gradient_penalty else []
        for images in penalised:
            yield Use("D_a", "penalty", len(images), lambda d=judge, x=images: d(x), images, parameters, True, False)
        if "critic" in agent.networks:
            critic, images, others = agent.networks["critic"], torch.cat([real.detach(), *fakes]), told[agent.name]
            logits = leaf(torch.cat(batch.logits[j])[:, None])
            yield Use(
                "D_c", "values, slopes", len(images),
                lambda q=critic, x=images, a=logits, o=others: q.value(q.encode(x), joint(a, o)),
                at=logits, parameters=list(critic.parameters()), slope=True,
            )  # fmt: skip
            if config.lambda_discriminator < 1:  # D_a follows the critic at its own logits, without noise
                encoded = critic.encode(images).detach()
                yield Use(
                    "D_c", "D_a's slopes (head)", len(images),
                    lambda q=critic, e=encoded, a=logits, o=others: q.value(e, joint(a, o)), at=logits,
                )  # fmt: skip


def of_generators(trainer: MADDPG, batch: Batch, told: dict[str, Tensor | None]) -> Iterator[Use]:
    """Each D_a judges what G painted, frozen; G_c values the answers."""
    config, first = trainer.config, leading(trainer.config, len(batch.policy[0]))
    if config.returns == "relativistic" and config.updates == "alternating":  # D_a has learned since it judged these
        for judge in judges(trainer):
            yield Use("D_a", "real, beside G's", len(batch.real), lambda d=judge, x=batch.real: d(x))
    for i, agent in enumerate(trainer.generators):
        images, z = leaf(batch.images[i]), leaf(batch.z[i])
        for judge in judges(trainer):
            yield Use("D_a", "teaches G", len(images), lambda d=judge, x=images: judged(d, x, first), at=images)
        if "critic" in agent.networks:
            critic, fresh, count = agent.networks["critic"], len(batch.policy[i]), config.answers
            yield Use(
                "G_c", "values, slopes", len(batch.state),
                lambda q=critic, s=batch.state, z=z, o=told[agent.name], f=fresh, n=count: q.value(
                    for_answers(q.encode(s), f, n), joint(z, o)
                ),
                at=z, parameters=list(critic.parameters()), slope=True,
            )  # fmt: skip


def of_targets(trainer: MADDPG, batch: Batch) -> Iterator[Use]:
    """With gamma > 0 the targets' forward passes: what they would do next, and its value."""
    state = batch.real
    acts = [agent.next_action(state, h) for agent, h in zip(trainer.generators, batch.memory, strict=True)]
    z, fakes = map(list, zip(*acts, strict=True))
    logits = [agent.next_logits(state, fakes) for agent in trainer.discriminators]
    told = trainer.others(z, logits)
    for i, agent in enumerate(trainer.generators):
        actor, painter, rows = agent.targets["actor"], agent.targets["generator"], len(state)
        yield Use("G_a'", "next", rows, lambda g=actor, h=batch.memory[i]: g(state, h)[0])
        yield Use("G'", "next", rows, lambda g=painter, z=z[i]: g(z))
        yield Use("G_c'", "next", rows, lambda a=agent, z=z[i]: a.next_value(state, z, told[a.name]))
    for agent, answers in zip(trainer.discriminators, logits, strict=True):
        for images in (state, *fakes):
            yield Use("D_a'", "next", len(images), lambda d=agent.targets["actor"], x=images: d(x))
        rows = len(state) * (1 + len(fakes))
        yield Use(
            "D_c'", "next", rows, lambda a=agent, p=answers: torch.cat(a.next_value(state, fakes, p, told[a.name]))
        )


def judges(trainer: MADDPG) -> list[torch.nn.Module]:
    """The D_a's."""
    return [agent.networks["actor"] for agent in trainer.discriminators]


def judged(judge: torch.nn.Module, images: Tensor, first: int) -> Tensor:
    """All that D_a says of images (B, ...): its logits and, if it is asked, whose it takes them for: (B, 1 + N)."""
    logits, names = judge.judge(images, first)
    return logits if names is None else torch.cat([logits[:, None], names], dim=1)
