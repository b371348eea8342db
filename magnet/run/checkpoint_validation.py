"""Whether what was read from a checkpoint has the form of what a run writes, checked before any of it is used.

The form is given by an example: what the run itself would write, with a type or a function where it cannot know the
value's own form.
"""

import dataclasses
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor, nn

from magnet.agents.networks import discriminator_networks, generator_networks
from magnet.config import FREE_ON_RESUME, Config, agent_names, check, convert
from magnet.maddpg import MADDPG
from magnet.support.errors import UserError

LARGEST = 2**62  # of whole numbers: all that count something stay below it
CUDA_STATE = 16  # bytes: the state of a GPU's random generator


def first_fault(found, example, name: str) -> str | None:
    """What is wrong first with `found`, in words that begin with its dotted name, or None.

    It must have the keys, lengths and types of `example`; its tensors the shapes and dtypes, and finite numbers. In
    place of a value the example may have its type, or a function that says what is wrong with a value, or None.
    """
    if isinstance(example, list) and isinstance(found, list):
        found, example = dict(enumerate(found)), dict(enumerate(example))
    if isinstance(example, dict) and isinstance(found, dict):
        inside = name and f"{name}."
        for key in example:
            if key not in found:
                return f"{inside}{key} is missing"
        for key in found:
            if key not in example:
                return f"{name or 'it'} has the unknown key {str(key)[:80]!r}"
        faults = (first_fault(found[key], example[key], f"{inside}{key}") for key in example)
        return next(filter(None, faults), None)
    if isinstance(example, Tensor):
        wrong = unlike(found, example)
    elif callable(example) and not isinstance(example, type):
        wrong = example(found)
    else:
        wrong = no_value(found, example if isinstance(example, type) else type(example))
    return wrong and f"{name} {wrong}"


def refuse(path: Path, fault: str | None) -> None:
    """Raises UserError if the checkpoint `path` has a fault."""
    if fault:
        raise UserError(
            f"{path} is not as train.py writes checkpoints: {fault}; give another, or delete it for the one before it."
        )


def no_value(found, kind: type) -> str | None:
    """What tells `found` from a value of the type `kind`."""
    if not isinstance(found, kind) or isinstance(found, bool):
        return f"is of type {type(found).__name__}, not {kind.__name__}"
    if kind is int and not 0 <= found < LARGEST:
        return f"is not from 0 to {LARGEST}"
    return "is not a number" if kind is float and found != found else None


def unlike(found, example: Tensor) -> str | None:
    """What tells `found` from a tensor of finite numbers with the shape and dtype of `example`, wherever that lies."""
    if type(found) is not Tensor or found.layout != torch.strided or found.is_nested or found.device.type != "cpu":
        return "is not a plain tensor"
    if (found.dtype, found.shape) != (example.dtype, example.shape):
        forms = [f"{one.dtype} {tuple(one.shape)}".removeprefix("torch.") for one in (found, example)]
        return "is {}, not {}".format(*forms)
    return None if found.isfinite().all() else "is not finite"


def indices(example: Tensor, below: int) -> Callable:
    """For an example: whole numbers from 0 to below `below`, with the shape of `example`."""

    def wrong(found) -> str | None:
        if fault := unlike(found, example):
            return fault
        return None if ((found >= 0) & (found < below)).all() else f"has an index outside 0 ... {below - 1}"

    return wrong


def random_state(generator: torch.Generator, others: bool = True) -> Callable:
    """For an example: a state that `generator` takes; with `others` also one that another kind of device has left."""
    own = len(generator.get_state())
    sizes = {own, CUDA_STATE, len(torch.Generator().get_state())} if others else {own}

    def wrong(found) -> str | None:
        try:
            if unlike(found, torch.empty(len(found), dtype=torch.uint8)) or len(found) not in sizes:
                raise ValueError
            if len(found) == own:
                torch.Generator(generator.device).set_state(found)
        except (TypeError, ValueError, RuntimeError):
            return "is no state of a random generator"
        return None

    return wrong


def adam_state(parameters: list[Tensor]) -> dict:
    """What Adam keeps of `parameters` once it has made a step."""
    return {i: {"step": torch.zeros(()), "exp_avg": p, "exp_avg_sq": p} for i, p in enumerate(parameters)}


def within(low: float, high: float) -> Callable:
    """For an example: a number from `low` to `high`, of their type."""

    def wrong(found) -> str | None:
        return None if type(found) is type(low) and low <= found <= high else f"is no number from {low:g} to {high:g}"

    return wrong


def trainer_fault(saved, trainer: MADDPG) -> str | None:
    """What is wrong first with `saved`, a trainer's state, if `trainer`, which has made no step, cannot go on there."""
    example, below = trainer.state_dict(), 2 * len(trainer.dataset)
    steps = saved.get("steps") if isinstance(saved, dict) else 0

    def has_learned(key: str) -> bool:
        """In the first step no extra reward is known yet."""
        return steps not in ((0, 1) if key == "reward_critic" else (0,))

    for agent in trainer.agents:
        example["agents"][agent.name] |= {
            "random": random_state(agent.random),
            "optimizers": {  # param_groups are not read: the config has what they say
                key: {"state": adam_state(list(network.parameters())) if has_learned(key) else {}, "param_groups": list}
                for key, network in agent.networks.items()
            },
        }
        if agent.scaler.is_enabled():  # the scale is a float32, and grows when the count reaches the interval
            count = within(0, agent.scaler.get_growth_interval() - 1)
            example["agents"][agent.name]["scaler"] = {"scale": within(2.0**-126, 2.0**127), "_growth_tracker": count}
    drawn = example["environment"]
    drawn |= {name: indices(drawn[name], below) for name in ("state", "real", "order")}
    drawn["random"] = random_state(trainer.environment.random, others=False)
    example["replay"] |= {"storage": dict, "random": random_state(trainer.replay.random)}
    fault = first_fault(saved, example, "trainer")
    if fault:
        return fault
    rows = min(saved["replay"]["written"], trainer.replay.capacity)
    stored = {name: values[:rows] for name, values in trainer.replay.storage.items()}
    stored |= {name: indices(stored[name], below) for name in ("state", "real", "next_real")}
    return first_fault(saved["replay"]["storage"], stored, "trainer.replay.storage")


def halved(network: nn.Module) -> dict[str, Tensor]:
    """The state of `network` as exported weights hold it: parameters in float16, BatchNorm's statistics as they are."""
    parameters = {name for name, _ in network.named_parameters()}
    return {name: x.half() if name in parameters else x for name, x in network.state_dict().items()}


def networks_fault(saved, config, exported: int = 0) -> str | None:
    """What is wrong first with the agents of `saved`, a trainer's state, for sampling by `config`.

    exported: of exported weights how many recurrent states they hold. The networks are counted without being made:
    nothing is allocated for a file that does not hold them.
    """
    agents, kinds = {}, (generator_networks(config), discriminator_networks(config))
    for names, makers in zip(agent_names(config), kinds, strict=True):
        with torch.device("meta"):
            networks = {key: make() for key, make in makers.items()}
        if exported:
            example = {"targets": {key: halved(net) for key, net in networks.items() if "critic" not in key}}
            if makers is kinds[0]:
                shape = networks["actor"].recurrent_state_shape if "actor" in networks else (0,)
                example["mid_episode"] = torch.empty(exported, *shape, dtype=torch.float16, device="meta")
        else:
            weights = {key: net.state_dict() for key, net in networks.items()}
            example = {"networks": weights, "targets": weights, "optimizers": dict, "random": Tensor}
            example |= {"scaler": dict} if config.precision == "fp16" else {}
        agents |= dict.fromkeys(names, example)
    return first_fault(saved.get("agents"), agents, "trainer.agents")


def with_present_names(found: dict) -> dict:
    """The parameters `found` of an older run, under the names that Config has now."""
    found = dict(found)
    if "returns" in found:
        found["reward_function"] = found.pop("returns")
    weights = [found.get(f"lambda_{kind}") for kind in ("generator", "discriminator")]  # 1: the actor has no critic
    if all(type(weight) in (int, float) and weight in (0, 1) for weight in weights):
        del found["lambda_generator"], found["lambda_discriminator"]
        critics = {(0, 0): "both", (0, 1): "generator", (1, 0): "discriminator", (1, 1): "none"}
        found["critics"] = critics[tuple(weights)]
    return found


def restored_config(path: Path, found: dict, told: bool = False) -> Config:
    """The config of `found`, the parameters in a checkpoint or in a config.json, read from `path`.

    A parameter that it lacks has the `old` value that the field declares; with `told` a line says so.

    Raises UserError if there is none, if it has parameters that are no more, or if a value cannot be.
    """
    found = with_present_names(found)
    fields = {field.name: field for field in dataclasses.fields(Config)}
    added = {name: field.metadata["old"] for name, field in fields.items() if name not in found}
    differing = sorted(map(str, (found.keys() - fields.keys()) | {name for name in added if added[name] is None}))
    if differing:
        raise UserError(
            f"{path} is of another release of MAGNET, which differs in {', '.join(differing)}: use that release "
            f"(git_commit in the run's environment.json)."
        )
    unlike_new = {name: value for name, value in added.items() if value != fields[name].default}
    of_game = {name: value for name, value in unlike_new.items() if name not in FREE_ON_RESUME}
    if told and of_game:
        values = ", ".join(f"--{name.replace('_', '-')} {value}" for name, value in of_game.items())
        print(f"{path} is older than {values}: with these values it does what it did.")
    config = Config(**convert(found), **added)
    try:
        check(config)
    except UserError as error:
        raise UserError(f"{path} is not as train.py writes it: of its parameters {error}") from None
    return config
