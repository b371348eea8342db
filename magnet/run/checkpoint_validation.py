"""Checks that the contents of a checkpoint have the form that a run writes, before any of them are used.

An example gives the form: the values that the run itself would write. Where a value's form is not known in advance, the
example holds its type or a function that checks it.
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

MAX_NUMBER = 2**62  # whole numbers count something and stay below it
CUDA_STATE = 16  # bytes in the state of a GPU's random generator

Check = Callable[[object], str | None]  # value -> its fault in words, or None


def find_fault(value, example, name: str) -> str | None:
    """The first fault of `value`, in words that begin with its dotted name, or None.

    `value` must have the keys, lengths and types of `example`; its tensors must have the same shapes and dtypes, and
    finite numbers. In place of a value the example may hold a type or a Check.
    """
    if isinstance(example, list) and isinstance(value, list):
        value, example = dict(enumerate(value)), dict(enumerate(example))
    if isinstance(example, dict) and isinstance(value, dict):
        inside = name and f"{name}."
        if missing := [key for key in example if key not in value]:
            return f"{inside}{missing[0]} is missing"
        if unknown := [key for key in value if key not in example]:
            return f"{name or 'it'} has the unknown key {str(unknown[0])[:80]!r}"
        faults = (find_fault(value[key], example[key], f"{inside}{key}") for key in example)
        return next(filter(None, faults), None)
    if isinstance(example, Tensor):
        fault = find_tensor_fault(value, example)
    elif callable(example) and not isinstance(example, type):
        fault = example(value)
    else:
        fault = find_type_fault(value, example if isinstance(example, type) else type(example))
    return fault and f"{name} {fault}"


def refuse(path: Path, fault: str | None) -> None:
    """Raises UserError if the checkpoint `path` has a fault."""
    if fault:
        raise UserError(
            f"{path} is not as train.py writes checkpoints: {fault}; give another, or delete it for the one before it."
        )


def find_type_fault(value, expected: type) -> str | None:
    """Why `value` is no value of the type `expected`, or None."""
    if not isinstance(value, expected) or isinstance(value, bool):
        return f"is of type {type(value).__name__}, not {expected.__name__}"
    if expected is int and not 0 <= value < MAX_NUMBER:
        return f"is not from 0 to {MAX_NUMBER}"
    return "is not a number" if expected is float and value != value else None


def find_tensor_fault(value, example: Tensor) -> str | None:
    """Why `value` is no CPU tensor of finite numbers with the shape and dtype of `example`, or None."""
    if type(value) is not Tensor or value.layout != torch.strided or value.is_nested or value.device.type != "cpu":
        return "is not a plain tensor"
    if (value.dtype, value.shape) != (example.dtype, example.shape):
        forms = [f"{one.dtype} {tuple(one.shape)}".removeprefix("torch.") for one in (value, example)]
        return "is {}, not {}".format(*forms)
    return None if value.isfinite().all() else "is not finite"


def require_indices(example: Tensor, below: int) -> Check:
    """A Check for whole numbers from 0 to below `below`, with the shape of `example`."""

    def find(value) -> str | None:
        if fault := find_tensor_fault(value, example):
            return fault
        return None if ((value >= 0) & (value < below)).all() else f"has an index outside 0 ... {below - 1}"

    return find


def require_random_state(generator: torch.Generator, any_device: bool = True) -> Check:
    """A Check for a state that `generator` takes; with `any_device` also for one from another kind of device."""
    own = len(generator.get_state())
    sizes = {own, CUDA_STATE, len(torch.Generator().get_state())} if any_device else {own}

    def find(value) -> str | None:
        try:
            if find_tensor_fault(value, torch.empty(len(value), dtype=torch.uint8)) or len(value) not in sizes:
                raise ValueError
            if len(value) == own:
                torch.Generator(generator.device).set_state(value)
        except (TypeError, ValueError, RuntimeError):
            return "is no state of a random generator"
        return None

    return find


def require_number(low: float, high: float) -> Check:
    """A Check for a number from `low` to `high`, of their type."""

    def find(value) -> str | None:
        return None if type(value) is type(low) and low <= value <= high else f"is no number from {low:g} to {high:g}"

    return find


def find_trainer_fault(trainer_state, trainer: MADDPG) -> str | None:
    """The first fault of `trainer_state`, or None if `trainer`, which has made no step, can go on there."""
    example, below = trainer.state_dict(), 2 * len(trainer.dataset)
    steps = trainer_state.get("steps") if isinstance(trainer_state, dict) else 0
    for agent in trainer.agents:
        optimizers = {}
        for key, network in agent.networks.items():
            first = 2 if key == "reward_critic" else 1  # in the first step no extra reward is known yet
            parameters = list(network.parameters()) if steps not in range(first) else []
            state = {i: {"step": torch.zeros(()), "exp_avg": p, "exp_avg_sq": p} for i, p in enumerate(parameters)}
            optimizers[key] = {"state": state, "param_groups": list}  # the groups are not read: the config has them
        example["agents"][agent.name] |= {"random": require_random_state(agent.random), "optimizers": optimizers}
        if agent.scaler.is_enabled():  # the scale is a float32, and grows when the count reaches the interval
            count = require_number(0, agent.scaler.get_growth_interval() - 1)
            scale = require_number(2.0**-126, 2.0**127)
            example["agents"][agent.name]["scaler"] = {"scale": scale, "_growth_tracker": count}
    environment = example["environment"]
    environment |= {name: require_indices(environment[name], below) for name in ("state", "real", "order")}
    environment["random"] = require_random_state(trainer.environment.random, any_device=False)
    example["replay"] |= {"storage": dict, "random": require_random_state(trainer.replay.random)}
    if fault := find_fault(trainer_state, example, "trainer"):
        return fault
    rows = min(trainer_state["replay"]["written"], trainer.replay.capacity)
    stored = {name: values[:rows] for name, values in trainer.replay.storage.items()}
    stored |= {name: require_indices(stored[name], below) for name in ("state", "real", "next_real")}
    return find_fault(trainer_state["replay"]["storage"], stored, "trainer.replay.storage")


def pack_weights(network: nn.Module) -> dict[str, Tensor]:
    """The state of `network` as exported weights hold it: parameters in float16, BatchNorm's statistics as they are."""
    parameters = {name for name, _ in network.named_parameters()}
    return {name: x.half() if name in parameters else x for name, x in network.state_dict().items()}


def find_networks_fault(trainer_state, config, exported_states: int = 0) -> str | None:
    """The first fault of the agents in `trainer_state`, for sampling by `config`; or None.

    exported_states: the number of recurrent states that exported weights hold; 0 for a checkpoint. The networks are
    built without memory: nothing is allocated for a file that does not hold them.
    """
    agents, makers = {}, (generator_networks(config), discriminator_networks(config))
    for names, makers_by_key in zip(agent_names(config), makers, strict=True):
        with torch.device("meta"):
            networks = {key: make() for key, make in makers_by_key.items()}
        if exported_states:
            example = {"targets": {key: pack_weights(net) for key, net in networks.items() if "critic" not in key}}
            if makers_by_key is makers[0]:
                shape = networks["actor"].recurrent_state_shape if "actor" in networks else (0,)
                example["mid_episode"] = torch.empty(exported_states, *shape, dtype=torch.float16, device="meta")
        else:
            weights = {key: net.state_dict() for key, net in networks.items()}
            example = {"networks": weights, "targets": weights, "optimizers": dict, "random": Tensor}
            example |= {"scaler": dict} if config.precision == "fp16" else {}
        agents |= dict.fromkeys(names, example)
    return find_fault(trainer_state.get("agents"), agents, "trainer.agents")


def rename_old_parameters(parameters: dict) -> dict:
    """`parameters` of an older run, under the names that Config has now."""
    parameters = dict(parameters)
    if "returns" in parameters:
        parameters["reward_function"] = parameters.pop("returns")
    weights = [parameters.get(f"lambda_{role}") for role in ("generator", "discriminator")]  # 1: it has no critic
    if all(type(weight) in (int, float) and weight in (0, 1) for weight in weights):
        del parameters["lambda_generator"], parameters["lambda_discriminator"]
        critics = {(0, 0): "both", (0, 1): "generator", (1, 0): "discriminator", (1, 1): "none"}
        parameters["critics"] = critics[tuple(weights)]
    return parameters


def restore_config(path: Path, parameters: dict, announce: bool = False) -> Config:
    """The Config of `parameters`, which were read from `path`, a checkpoint or a config.json.

    A missing parameter gets the `old` value that its field declares; with `announce` a line is printed. Raises
    UserError if the field declares none, for unknown parameters, and for values that cannot be.
    """
    parameters = rename_old_parameters(parameters)
    fields = {field.name: field for field in dataclasses.fields(Config)}
    added = {name: field.metadata["old"] for name, field in fields.items() if name not in parameters}
    unknown = (parameters.keys() - fields.keys()) | {name for name, value in added.items() if value is None}
    if unknown:
        raise UserError(
            f"{path} is of another release of MAGNET, which differs in {', '.join(sorted(map(str, unknown)))}: use "
            f"that release (git_commit in the run's environment.json)."
        )
    changing = {n: v for n, v in added.items() if v != fields[n].default and n not in FREE_ON_RESUME}
    if announce and changing:
        values = ", ".join(f"--{name.replace('_', '-')} {value}" for name, value in changing.items())
        print(f"{path} is older than {values}: with these values it does what it did.")
    config = Config(**convert(parameters), **added)
    try:
        check(config)
    except UserError as error:
        raise UserError(f"{path} is not as train.py writes it: of its parameters {error}") from None
    return config
