"""What a run will need, printed before it starts: parameters per network and memory, counted without computing."""

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

WEIGHT_COPIES = 5  # each weight with its target, its gradient and Adam's two moments
MIB = 2**20


def without_effect(config: Config) -> set[str]:
    """The parameters that change nothing in this combination."""
    idle = set()
    if config.algorithm == "gan":
        idle |= {"critics", "exploration", "epsilon", "diversity_weight"}
        idle.add("episode_length")
    if not config.r1:
        idle.add("r1_every")
    if not config.replay_fraction and not config.extra_reward:
        idle.add("replay_size")
    if not config.extra_reward:
        idle |= {"extra_weight", "extra_to"}
    if config.points:
        idle.add("image_size")
    if config.gamma:
        idle.add("average")
    if config.data == "synthetic":
        idle.add("skip_bad_images")
    if config.device == "cpu":
        idle |= {"cuda_graphs", "deterministic"}
    return idle


def kept_bytes(network: nn.Module, *inputs: Tensor) -> int:
    """Bytes of what a forward pass of `network` keeps for its backward pass, parameters not counted."""
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


def size_of(network: nn.Module) -> int:
    """Its number of parameters."""
    return sum(p.numel() for p in network.parameters())


def changed(config) -> str:
    """One line with the parameters that are not the defaults, as flags."""
    flags = []
    for field in dataclasses.fields(config):
        value, flag = getattr(config, field.name), field.name.replace("_", "-")
        if value != field.default:
            flags.append(
                f"--{'' if value else 'no-'}{flag}" if field.type is bool else f"--{flag} {shlex.quote(str(value))}"
            )
    return one_line("Settings other than the defaults: " + (" ".join(flags) or "none"))


def summary(config, images: int) -> str:
    """Two lines: the networks' parameters, and the memory that training on `images` images or points takes, in MiB."""
    parameters, needs = count(config, images)
    networks = ", ".join(f"{name} {number:,}" for name, number in parameters.items())
    memory = ", ".join(f"{name} {need / MIB:,.0f}" for name, need in needs.items())
    return (
        f"Networks: {sum(parameters.values()):,} parameters ({networks})\n"
        f"Memory: {sum(needs.values()) / MIB:,.0f} MiB ({memory}) and what PyTorch takes"
    )


def refuse_too_large(config) -> None:
    """Raises UserError if a run needs more memory than its device has; the images need none, they can stay on disk."""
    needs, device = sum(count(config, images=0)[1].values()), torch.device(config.device)
    if device.type == "cuda":
        memory = torch.cuda.get_device_properties(device).total_memory
    else:  # Windows does not say
        memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") if hasattr(os, "sysconf") else math.inf
    if needs > memory:
        raise UserError(
            f"These settings need about {needs / MIB:,.0f} MiB of memory, {config.device} has {memory / MIB:,.0f}: "
            f"give less --width, --batch-size, --replay-size or --nz, or fewer agents."
        )


def count(config, images: int) -> tuple[dict[str, int], dict[str, float]]:
    """The networks' parameters, and the bytes that training on `images` images or points takes, by what for.

    Memory is counted from the tensors themselves: weights with their copies, the array, the replay buffer, and what the
    forward passes of one step keep. Libraries' workspaces, and what penalties on D_a's gradient keep, come on top. Of
    several processes it is what each takes.
    """
    batch = config.batch_size // world_size()  # each process has its share
    n, m = config.generators, config.discriminators
    discriminated = torch.empty((1 + n) * batch, *config.shape, device="meta")  # real and fake
    plain = dataclasses.replace(config, precision="fp32")  # there is no autocast on the meta device
    with torch.device("meta"):
        generator = {key: make() for key, make in generator_networks(plain).items()}
        discriminator = {key: make() for key, make in discriminator_networks(plain).items()}
        image, z = torch.empty(batch, *config.shape), torch.empty(batch, config.nz)
        seen, logits = z, torch.empty(batch, m)
        features, actions = torch.empty(len(discriminated), config.features), torch.empty(len(discriminated), 2)
        recurrent = generator["actor"].initial_recurrent_state(batch) if "actor" in generator else torch.empty(batch, 0)
    rows = [
        (f"{name} x {copies}" if copies > 1 else name, networks[key], inputs, copies)
        for name, networks, key, inputs, copies in (
            ("G_a", generator, "actor", (image, recurrent), n),
            ("G", generator, "generator", (z,), n),
            ("G_c", generator, "critic", (seen, logits), n),
            ("Q_r", generator, "reward_critic", (image, image), n),
            ("D_a", discriminator, "actor", (discriminated,), m),
            ("D_c", discriminator, "critic", (features, actions), m),
        )
        if key in networks
    ]
    bulk = convolution_dtype(config).itemsize / 4  # of float32, for what convolutions keep
    weights = [copies * size_of(network) for _, network, _, copies in rows]
    kept = sum(copies * bulk * kept_bytes(network, *inputs) for _, network, inputs, copies in rows)
    stored = math.prod(config.shape) * (4 if config.points else 1)  # bytes of one
    transition = n * (stored + 4 * recurrent[0].numel()) + 3 * 8
    needs = {
        "weights with their copies": 4 * WEIGHT_COPIES * sum(weights),
        "one step's activations": kept,
        f"{images:,} {'points' if config.points else 'images'}": images * stored,
        "replay": transition * config.replay_size if config.replay_fraction or config.extra_reward else 0,
    }
    return {name: number for (name, *_), number in zip(rows, weights, strict=True)}, needs
