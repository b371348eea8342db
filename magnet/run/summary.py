"""What is known of a run before it starts: its settings, its networks' sizes, and whether its memory suffices."""

import dataclasses
import math
import os
import shlex

import torch
from torch import Tensor, nn

from magnet.agents.networks import convolution_dtype, discriminator_networks, generator_networks
from magnet.config import Config
from magnet.support.distributed import world_size
from magnet.support.errors import UserError, one_line

TITLES = {
    ("generator", "actor"): "G_a", ("generator", "generator"): "G", ("generator", "critic"): "G_c",
    ("generator", "reward_critic"): "Q_r", ("discriminator", "actor"): "D_a", ("discriminator", "critic"): "D_c",
}  # fmt: skip
WEIGHT_COPIES = 5  # each weight has a target, a gradient and Adam's two moments
MIB = 2**20


def find_idle_flags(config: Config) -> set[str]:
    """The parameters that change nothing in this combination."""
    rules = (
        (config.algorithm == "gan", {"critics", "exploration", "epsilon", "diversity_weight", "episode_length"}),
        (not config.r1, {"r1_every"}),
        (not config.replay_fraction and not config.extra_reward, {"replay_size"}),
        (not config.extra_reward, {"extra_weight", "extra_to"}),
        (config.points, {"image_size", "architecture"}),
        (config.gamma, {"average"}),
        (config.data == "synthetic", {"skip_bad_images"}),
        (config.device == "cpu", {"cuda_graphs", "deterministic"}),
    )
    return {name for applies, names in rules if applies for name in names}


def describe_settings(config: Config) -> str:
    """One line with the parameters that differ from the defaults, as flags."""
    flags = []
    for field in dataclasses.fields(config):
        value, name = getattr(config, field.name), field.name.replace("_", "-")
        if value != field.default:
            flag = f"--{'' if value else 'no-'}{name}" if field.type is bool else f"--{name} {shlex.quote(str(value))}"
            flags.append(flag)
    return one_line("Settings other than the defaults: " + (" ".join(flags) or "none"))


def build_on_meta(config) -> dict[tuple[str, str], nn.Module]:
    """The networks of one agent of each role, by the keys of TITLES and in its order, without memory for weights."""
    plain = dataclasses.replace(config, precision="fp32")  # the meta device has no autocast
    makers = {"generator": generator_networks(plain), "discriminator": discriminator_networks(plain)}
    with torch.device("meta"):
        return {(role, key): makers[role][key]() for role, key in TITLES if key in makers[role]}


def count_parameters(config) -> dict[str, int]:
    """The number of parameters in each network, over all agents that have it: {"G_a": ..., "G x 4": ...}."""
    copies, counts = {"generator": config.generators, "discriminator": config.discriminators}, {}
    for (role, key), network in build_on_meta(config).items():
        n, numbers = copies[role], sum(p.numel() for p in network.parameters())
        counts[TITLES[role, key] + (f" x {n}" if n > 1 else "")] = n * numbers
    return counts


def describe_networks(config) -> str:
    """One line with the parameters of all networks."""
    counts = count_parameters(config)
    networks = ", ".join(f"{name} {number:,}" for name, number in counts.items())
    return f"Networks: {sum(counts.values()):,} parameters ({networks})"


def count_kept_bytes(network: nn.Module, *inputs: Tensor) -> int:
    """The bytes that a forward pass of `network` keeps for its backward pass, without the parameters."""
    own = {p.untyped_storage()._cdata for p in network.parameters()}
    kept: dict[int, int] = {}

    def note(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        kept[storage._cdata] = storage.nbytes()  # several views of one storage count once
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        outputs = network(*inputs)  # held until here, so that no storage is freed and its address given to another
    del outputs
    return sum(size for storage, size in kept.items() if storage not in own)


def estimate_memory(config) -> float:
    """The bytes that a process needs at least, without images: weights with copies, replay buffer, activations.

    The activations of the critics, and what libraries and penalties on D_a's gradient keep, come on top.
    """
    networks, rows = build_on_meta(config), config.batch_size // world_size()
    with torch.device("meta"):
        images, z = torch.empty(rows, *config.shape), torch.empty(rows, config.nz)
        discriminated = torch.empty((1 + config.generators) * rows, *config.shape)  # real and generated images
    kept = config.generators * count_kept_bytes(networks["generator", "generator"], z)
    kept += config.discriminators * count_kept_bytes(networks["discriminator", "actor"], discriminated)
    transition = math.prod(config.shape) * (4 if config.points else 1)  # points are float32, images uint8
    if actor := networks.get(("generator", "actor")):
        recurrent = torch.empty(rows, *actor.recurrent_state_shape, device="meta")
        kept += config.generators * count_kept_bytes(actor, images, recurrent)
        transition += 4 * recurrent[0].numel()
    replay = config.replay_size * config.generators * transition
    weights = 4 * WEIGHT_COPIES * sum(count_parameters(config).values())
    activations = kept * convolution_dtype(config).itemsize / 4
    return weights + activations + (replay if config.replay_fraction or config.extra_reward else 0)


def refuse_too_large(config) -> None:
    """Raises UserError if a run needs more memory than its device has. The images need none: they can stay on disk."""
    needs, device = estimate_memory(config), torch.device(config.device)
    if device.type == "cuda":
        memory = torch.cuda.get_device_properties(device).total_memory
    else:  # Windows does not say
        memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") if hasattr(os, "sysconf") else math.inf
    if needs > memory:
        raise UserError(
            f"These settings need about {needs / MIB:,.0f} MiB of memory, {config.device} has {memory / MIB:,.0f}: "
            f"give less --width, --batch-size, --replay-size or --nz, or fewer agents."
        )
