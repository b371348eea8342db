"""All parameters of a run, in one dataclass: their defaults, meaning, limits and sources, and the presets.

train.py makes its command line from the fields; a run folder's config.json and every checkpoint hold their values.
Nothing here imports torch, so that --help and a mistyped option are immediate.
"""

import dataclasses
import math
import re
from dataclasses import dataclass

from magnet.support.errors import UserError
from magnet.support.paths import expand

GAUSSIANS = ("gaussians-8", "gaussians-25")  # see gaussians.py
MANY = 10**12  # upper limit of a parameter that declares none


def parameter(
    default, about: str, low: float = -math.inf, high: float = MANY, choices: tuple = (), old=None, group: str = ""
):
    """A field of Config: its default, its help text, the values that it may take.

    old: the value for runs that were made before the field existed; None: such runs are refused.
    group: the title of a group in --help, which begins with this field.
    """
    metadata = {"about": about, "low": low, "high": high, "choices": choices, "old": old, "group": group}
    return dataclasses.field(default=default, metadata=metadata)


@dataclass(frozen=True)
class Config:
    """All parameters of a run. The command line is made from these fields, and config.json holds them.

    Sources: [M] the published MAGNET, [L] Lowe et al. 2017 (MADDPG), [D] chosen here: docs/differences.md says why.
    """

    data: str = parameter(
        "data/celeba", "folder or .zip of images, or a word: synthetic, faces drawn by the program; gaussians-8, "
        "gaussians-25, points in the plane", group="data",
    )  # fmt: skip
    skip_bad_images: bool = parameter(False, "leave out files that are no images, up to 1 %% of them")
    hold_out: float = parameter(0.0, "share of images that training never sees, chosen by name [D]", low=0, high=0.5)
    image_size: int = parameter(64, "S, side of all images in pixels; points have none [M]", choices=(32, 64, 128))
    extra_reward: str = parameter(
        "", "what the generators earn beside log D_a: resemble, jpeg, incompressible, smile, or a file with a function "
        "reward(states, images), which is executed (magnet/game/extra_rewards.py)", old="", group="extra reward",
    )  # fmt: skip
    extra_weight: float = parameter(1.0, "weight of the extra reward, in its deviations", low=0, high=1e6, old=1.0)
    extra_to: str = parameter(
        "both", "who follows the extra reward: both G_a and G, or the policy G_a alone", choices=("both", "policy"),
        old="both",
    )  # fmt: skip
    algorithm: str = parameter(
        "magnet", "magnet, or gan: G and D_a alone, z from noise", choices=("magnet", "gan"), group="game"
    )
    reward_function: str = parameter(
        "log", "the players' rewards (magnet/game/rewards.py)",
        choices=("log", "minimax", "hinge", "least-squares", "wasserstein", "relativistic"),
    )  # fmt: skip
    architecture: str = parameter("resize", "G's layers [D]; dcgan in [M]", choices=("resize", "dcgan"), old="dcgan")
    critics: str = parameter(
        "both", "which agents' actors follow a critic [M]; the others follow the gradient of the reward itself",
        choices=("both", "generator", "discriminator", "none"),
    )  # fmt: skip
    gamma: float = parameter(0.0, "discount of later rewards [D]; 0.95 in [M]", low=0, high=0.999)
    episode_length: int = parameter(25, "T, states in an episode [L]", low=1)
    exploration: float = parameter(0.1, "sigma of the noise in z [M]", low=0, high=1)
    epsilon: float = parameter(0.5, "chance of a random z [D]; 0.1 in [M] and with --extra-reward", low=0, high=1)
    diversity_weight: float = parameter(
        1.0, "weight of the objective for uncorrelated z [D]; 0 in [M]", low=0, high=1e6
    )
    init: str = parameter(
        "", "begin with the networks of a run, a checkpoint or exported weights, as models/celeba-64.pt, with their "
        "image size, width, nz and layers; all else is new", old="", group="learning",
    )  # fmt: skip
    epochs: int = parameter(50, "passes over the images [M]", low=1)
    steps: int = parameter(0, "end after so many steps, even if epochs remain; 0: no limit", low=0)
    batch_size: int = parameter(16, "B, images a step [M]", low=4, high=65536)
    width: int = parameter(64, "maps of the first convolution [M]; for points, units of a layer", low=4, high=4096)
    nz: int = parameter(100, "size of the generator's action z [M]", low=2, high=65536)
    lr: float = parameter(2e-4, "learning rate of every Adam [M]", low=1e-8, high=1)
    beta1: float = parameter(0.5, "Adam's decay of the mean gradient [M]", low=0, high=0.9999)
    beta2: float = parameter(0.999, "Adam's decay of the mean squared gradient [M]", low=0, high=0.999999)
    tau: float = parameter(
        0.003, "share of the new weights that every target takes for each step [D]; 0.01 in [L]", low=1e-6, high=1
    )
    average: float = parameter(
        0.05, "the targets' half-life grows to this share of the steps so far; 0: it stays tau's, as in [L] and with "
        "--gamma [D]", low=0, high=1, old=0.0,
    )  # fmt: skip
    replay_size: int = parameter(8192, "transitions in the replay buffer [D]", low=1)
    replay_fraction: float = parameter(0.25, "share of a batch that is replayed [D]", low=0, high=0.9)
    seed: int = parameter(0, "seed of everything random", low=0, high=2**63 - 1)
    r1: float = parameter(
        0.1, "weight of R1, the penalty on D_a's gradients at real images [D]", low=0, high=1e6,
        group="regularisers of D_a",
    )  # fmt: skip
    r1_every: int = parameter(8, "k: every k-th step has R1, with k times the weight [D]", low=1, high=1000)
    r2: float = parameter(0.0, "weight of R2, the same penalty at the generators' images", low=0, high=1e6)
    gradient_penalty: float = parameter(
        0.0, "weight of D_a's gradient penalty between real and generated images; 10 in WGAN-GP", low=0, high=1e6
    )
    spectral_norm: bool = parameter(False, "spectral normalisation of D_a, in place of its BatchNorm")
    generators: int = parameter(
        1, "N, generator agents, which all act on the same states", low=1, high=64, group="several agents"
    )
    discriminators: int = parameter(1, "M, discriminator agents, which all classify all images", low=1, high=64)
    specialise: float = parameter(
        0.0, "weight of the generators' reward for being recognised by a classifier", low=0, high=1e6
    )
    device: str = parameter("auto", "auto, cpu, cuda or cuda:N", group="run")
    threads: str = parameter(
        "auto", "threads on the CPU; auto: the fastest number in a trial before a new run", old="auto"
    )
    precision: str = parameter(
        "auto",
        "of the convolutions; auto: on a CPU the fastest in a trial, on a GPU bf16 from Ampere on, else fp32",
        choices=("auto", "fp32", "bf16", "fp16"),
    )
    cuda_graphs: str = parameter(
        "auto", "auto: on a GPU the step is recorded as CUDA graphs, which launch faster; off: it is not",
        choices=("auto", "off"), old="auto",
    )  # fmt: skip
    deterministic: bool = parameter(False, "on a GPU, use deterministic algorithms, which are slower", old=False)
    sample_every: int = parameter(500, "steps between two grids", low=1)
    checkpoint_every: int = parameter(2, "epochs between two checkpoints [M]", low=1)
    keep: int = parameter(3, "checkpoints that stay", low=1)
    evaluate_every: int = parameter(0, "steps between two scores, whose best is kept as best.pt; 0: never", low=0)
    patience: int = parameter(0, "end the run after so many scores without a new best; 0: no limit", low=0)
    models_dir: str = parameter("models", "folder of the runs")
    name: str = parameter("", "name of the run's folder; empty: the time")

    @property
    def points(self) -> bool:
        """Whether the data are points in the plane (gaussians.py), not pictures."""
        return self.data in GAUSSIANS

    @property
    def features(self) -> int:
        """The number of features that D_a's stack of layers computes from an image or a point."""
        if self.points:
            return self.width
        halvings = (self.image_size // 4).bit_length() - 1
        return 16 * self.width * 2 ** min(halvings - 1, 3)

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of one picture, or of one point."""
        return (2,) if self.points else (3, self.image_size, self.image_size)


def agent_names(config) -> tuple[list[str], list[str]]:
    """The names of the generators and of the discriminators: generator, or generator_0, generator_1, ... if several."""

    def names(kind: str, count: int) -> list[str]:
        return [kind] if count == 1 else [f"{kind}_{i}" for i in range(count)]

    return names("generator", config.generators), names("discriminator", config.discriminators)


FREE_ON_RESUME = {  # the parameters that a resumed run may change
    "data", "epochs", "steps", "device", "threads", "sample_every", "checkpoint_every", "keep", "evaluate_every",
    "patience", "cuda_graphs", "deterministic",
    "extra_reward",  # its file may lie elsewhere now; session.py compares what is in it
    "lr",  # a run that diverged can continue with a lower one
}  # fmt: skip

PRESETS = {
    "default": {},
    "original": {  # the published hyperparameters, as far as they have a counterpart here
        "gamma": 0.95, "tau": 0.01, "average": 0.0, "diversity_weight": 0.0, "replay_fraction": 0.5, "r1": 0.0,
        "epsilon": 0.1, "architecture": "dcgan",
    },
    "cpu": {"image_size": 32, "width": 32, "nz": 64, "device": "cpu"},
    "gaussians": {
        "data": "gaussians-25", "device": "cpu", "batch_size": 128, "width": 128, "nz": 2, "lr": 1e-3, "r1": 0.01,
        "r1_every": 1, "tau": 0.01, "epochs": 6, "evaluate_every": 500,
    },
}  # fmt: skip

REWARD_FUNCTION_DEFAULTS = {  # the defaults that --reward-function changes; other flags win
    "wasserstein": {"gradient_penalty": 10.0, "r1": 0.0},
    "relativistic": {"r2": 0.1},
}  # fmt: skip
EXTRA_REWARD_DEFAULTS = {"epsilon": 0.1}  # the defaults that --extra-reward changes: random actions ignore it
PATHS = {"data", "init", "extra_reward", "models_dir"}


def complete(flags: dict, base: dict | None = None) -> Config:
    """The Config of `base`, then the defaults of the rewards named in `flags`, then `flags`; later values win."""
    defaults = REWARD_FUNCTION_DEFAULTS.get(flags.get("reward_function"), {})
    defaults = defaults | (EXTRA_REWARD_DEFAULTS if flags.get("extra_reward") else {})
    return Config(**convert((base or {}) | defaults | flags))


def convert(values: dict) -> dict:
    """`values` in the types of Config, since other programs write 0 for 0.0 and 16.0 for 16. A `~` is expanded.

    A value that cannot be converted stays, and `check` refuses it.
    """
    kinds, converted = {field.name: field.type for field in dataclasses.fields(Config)}, dict(values)
    for name, value in values.items():
        kind = kinds.get(name)
        if kind is float and type(value) is int and abs(value) <= MANY**2:
            converted[name] = float(value)
        if kind is int and type(value) is float and value.is_integer():
            converted[name] = int(value)
        if name == "threads" and type(value) is int:
            converted[name] = str(value)
        if name in PATHS and type(value) is str:
            converted[name] = expand(value)
    return converted


def check(config: Config) -> None:
    """Raises UserError for the first value that is not allowed."""
    for field in dataclasses.fields(config):
        value, (low, high, choices) = getattr(config, field.name), map(field.metadata.get, ("low", "high", "choices"))
        flag = f"--{field.name.replace('_', '-')}"
        if type(value) is not field.type:
            raise UserError(f"{flag} is a {type(value).__name__}, but must be of type {field.type.__name__}.")
        flag = f"{flag} is {value!r:.80}, but must be"
        if field.type in (int, float) and not low <= value <= high:
            limits = f"at least {low:g}" if value < low and high == MANY else f"from {low:g} to {high:g}"
            raise UserError(f"{flag} {limits}.")
        if choices and value not in choices:
            raise UserError(f"{flag} one of {', '.join(map(str, choices))}.")
        if field.type is str and "\0" in value:
            raise UserError(f"{flag} without a zero byte.")
    if not re.fullmatch(r"auto|[1-9]\d{0,3}", config.threads):
        raise UserError(f"--threads is {config.threads!r:.80}, but must be auto or a number from 1 to 9999.")
    if config.name and not re.fullmatch(r"(?!\.+$)[A-Za-z0-9._-]{1,64}", config.name):
        raise UserError(f"--name is {config.name!r}, but must be 1 to 64 of A-Z, a-z, 0-9, '.', '_' and '-'.")
    if config.gamma and (config.algorithm == "gan" or config.critics == "none"):
        raise UserError(f"--gamma {config.gamma:g} is for critics, and this game has none: give --gamma 0.")
    if config.extra_reward and config.algorithm == "gan":
        raise UserError("--extra-reward is for a critic and a policy, which a plain GAN lacks: drop --algorithm gan.")
    if config.extra_reward and config.points:
        raise UserError(f"--extra-reward judges pictures, and --data {config.data} has none: drop one of the two.")
    if config.generators == 1 and config.specialise:
        raise UserError(f"--specialise {config.specialise:g} is for several generators: give --generators 2 or more.")
    if config.reward_function == "wasserstein" and not (config.gradient_penalty or config.spectral_norm):
        raise UserError(
            "--reward-function wasserstein needs bounded gradients of D: --gradient-penalty 10 or --spectral-norm."
        )
    if config.points and (config.hold_out or config.skip_bad_images):
        raise UserError(f"--data {config.data} has no files to leave out: drop --hold-out and --skip-bad-images.")
    if config.points and config.precision in ("bf16", "fp16"):
        raise UserError(f"--data {config.data} needs no convolutions: give --precision fp32, or auto.")
    if config.patience and not config.evaluate_every:
        raise UserError(f"--patience {config.patience} counts scores: give --evaluate-every as well, or --patience 0.")
    replayed = round(config.replay_fraction * config.batch_size)
    new = config.batch_size - replayed
    if new < 2:
        raise UserError(
            f"--replay-fraction {config.replay_fraction} leaves {new} of {config.batch_size} rows; give less."
        )
    if (replayed or config.extra_reward) and config.replay_size < new:
        raise UserError(f"--replay-size is {config.replay_size}, but one step stores {new} transitions; give more.")
