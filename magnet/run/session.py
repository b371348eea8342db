"""How a run begins: its settings, its data and its trainer, new ones or those of a checkpoint."""

import dataclasses
import json
import os
import shlex
from pathlib import Path

import torch

from magnet.config import FREE_ON_RESUME, Config, convert
from magnet.data.gaussians import PointDataset, draw_points
from magnet.data.image_dataset import ImageDataset, load_faces
from magnet.evaluation.sampling import FixedGrids
from magnet.evaluation.scores import Evaluation
from magnet.game.environment import new_environment, refuse_too_few
from magnet.game.extra_rewards import EXTRA_REWARDS, ExtraReward, load_extra_reward
from magnet.maddpg import MADDPG
from magnet.run import checkpoint
from magnet.run.checkpoint_validation import find_fault, find_trainer_fault, refuse, restore_config
from magnet.run.initial_networks import take_networks
from magnet.run.process_memory import read_resident_peak
from magnet.run.signals import Stop, should_continue
from magnet.run.timing import StepClock, count_steps, describe_run, describe_time, estimate_seconds
from magnet.support.distributed import all_reduce_max, first_on_machine
from magnet.support.errors import UserError
from magnet.support.paths import command_of

# Steps of a trial: the first ones, in which libraries set themselves up, and all; the 16 between are two periods of R1.
WARM_UP, TRIAL_STEPS = 4, 20
TRIAL_SECONDS = 20  # seconds, after the warm-up


def resume_run(run: Path, checkpoint_path: Path | None, flags: dict) -> tuple[Config, Path, dict]:
    """The config, path and contents of `run`'s checkpoint `checkpoint_path`, or of its last good one.

    flags: the parameters on the command line, which replace the run's. Raises UserError if they ask for another game.
    """
    if checkpoint_path:
        path, contents = checkpoint_path, checkpoint.load_earlier(checkpoint_path)
    else:
        path, contents = checkpoint.load_latest(run / "checkpoints")
    config = restore_config(path, contents["config"], announce=True)
    flags = {key: value for key, value in flags.items() if value != "auto" or key not in ("precision", "threads")}
    if "OMP_NUM_THREADS" in os.environ or int(config.threads) > (os.cpu_count() or 1):  # torchrun; another machine
        config = dataclasses.replace(config, threads="auto")
    differing_keys = sorted(k for k, v in flags.items() if k not in FREE_ON_RESUME and v != getattr(config, k))
    if bool(flags.get("extra_reward", config.extra_reward)) != bool(config.extra_reward):
        differing_keys.append("extra_reward")
    if differing_keys:
        words = ", ".join(f"--{key.replace('_', '-')} (was {getattr(config, key)})" for key in differing_keys)
        raise UserError(f"{run} cannot go on with other values of {words}; leave them out, or start a new run.")
    print(f"Going on from {path}.")
    return dataclasses.replace(config, **flags), path, contents


def read_parameters(path: Path) -> dict:
    """The parameters in another run's config.json, without its name and threads. Raises UserError."""
    try:
        parameters = json.loads(path.read_text(encoding="utf-8-sig"))  # Windows' editors put a mark before it
    except (OSError, ValueError) as error:
        raise UserError(f"{path} cannot be read as a config.json ({error}); give that of a run in models/.") from error
    if not isinstance(parameters, dict):
        raise UserError(f"{path} holds no parameters; give the config.json of a run in models/.")
    return dataclasses.asdict(restore_config(path, parameters, announce=True)) | {"name": "", "threads": "auto"}


def find_run(run: Path, models_dir: str) -> tuple[Path, Path | None]:
    """The folder of a run, and the checkpoint that is named. `run`: its folder, its name or one of its checkpoints.

    Raises UserError if there is none.
    """
    for place in (run, Path(models_dir) / run):
        if os.path.isdir(place / "checkpoints"):
            return place, None
        file = Path(os.path.abspath(place))
        if os.path.isfile(file) and file.parent.name == "checkpoints" and checkpoint.is_checkpoint_name(file):
            return file.parents[1], file
    if os.path.isfile(run):
        raise UserError(
            f"{run} is no checkpoint in a run's folder checkpoints; `{command_of('train')} --init "
            f"{shlex.quote(str(run))}` begins a new run with the networks of a checkpoint or of exported weights."
        )
    raise UserError(f"{run} is no run of MAGNET: it has no folder checkpoints; `ls {models_dir}` shows the runs.")


def load_reward(config: Config, flags: dict, contents: dict | None = None) -> ExtraReward | None:
    """The extra reward of `config`. Raises UserError.

    flags: the parameters that the user gave. A file is executed only if they name it: never because a checkpoint or a
    config.json does. contents: the checkpoint from which the run goes on, whose reward must be the same.
    """
    name = config.extra_reward
    if name and name not in EXTRA_REWARDS and convert(flags).get("extra_reward") != name:
        raise UserError(
            f"The extra reward is the file {name}, which runs only if you name it: if you trust it, add "
            f"`--extra-reward {shlex.quote(name)}`."
        )
    environment = contents["trainer"].get("environment") if contents else None
    digest = environment.get("extra") if isinstance(environment, dict) else None
    return load_extra_reward(name, digest) if name else None


def load_pixels(config: Config, held_out: bool = False):
    """The images uint8 (N, 3, S, S), or points float32 (N, 2), that a run learns from, or those held out of it.

    Raises UserError.
    """
    if config.points:
        return draw_points(config.data)
    with first_on_machine():
        return load_faces(
            config.data, config.image_size, outputs=[config.models_dir], skip_bad_images=config.skip_bad_images,
            hold_out=config.hold_out, held_out=held_out,
        )  # fmt: skip


def prepare_device(config: Config) -> None:
    """Makes a run's GPU the current one, and sets PyTorch to its fastest algorithms or to deterministic ones.

    These are settings of the whole process. For a run on a CPU nothing changes.
    """
    if config.device == "cpu":
        return
    if config.deterministic:
        os.environ["CUBLAS_WORKSPACE_CONFIG"] = ":4096:8"  # cuBLAS reads it before its first product
    torch.use_deterministic_algorithms(config.deterministic, warn_only=True)
    torch.utils.deterministic.fill_uninitialized_memory = False  # it takes time, and nothing here is read unwritten
    torch.backends.cudnn.deterministic = config.deterministic
    torch.backends.cudnn.benchmark = not config.deterministic  # picks by time, which differs from run to run
    if torch.device(config.device).index is not None:
        torch.cuda.set_device(config.device)  # CUDA graphs are recorded on the current one


def build(
    config: Config, pixels, path: Path | None = None, contents: dict | None = None, extra: ExtraReward | None = None
) -> tuple[MADDPG, Evaluation]:
    """The trainer of `config` and its scores, new ones or as they stood in the checkpoint `path`.

    pixels: as `load_pixels` gives them. contents: those of `path`. extra: as `load_reward` gives it. Raises
    UserError.
    """
    prepare_device(config)  # before anything is on the device
    dataset = PointDataset(pixels, config.device) if config.points else ImageDataset(pixels, config.device)
    if contents and contents["faces"] != dataset.fingerprint:
        raise UserError(f"The images in {config.data} are not those that the run learned from; give these with --data.")
    refuse_too_few(config, len(dataset))
    trainer = MADDPG(config, new_environment(config, dataset, extra), torch.device(config.device))
    reference = dataset
    if config.evaluate_every and config.hold_out:  # the best checkpoint is chosen on images that training never sees
        reference = ImageDataset(load_pixels(config, held_out=True), config.device)
    evaluation = Evaluation(trainer.generators, reference, config)
    if contents:
        refuse(path, find_trainer_fault(contents["trainer"], trainer))
        trainer.load_state_dict(contents["trainer"])
        if contents["best"]:
            refuse(path, find_fault(contents["best"], evaluation.best, "best"))
            evaluation.best = contents["best"]
    elif config.init:
        print(take_networks(trainer.agents, config.init))
    return trainer, evaluation


def try_run(
    config: Config, pixels, path: Path | None = None, contents: dict | None = None, extra: ExtraReward | None = None
) -> str:
    """Two lines: the steps and the time that a run would take from here on, and its memory.

    It makes some steps, a grid and, if the run has scores, one of them, and throws them away. Images that stay in their
    file are not in the memory; not every system tells it. All arguments are those of `build`. Raises UserError.
    """
    trainer, evaluation = build(config, pixels, path, contents, extra)
    first, clock, spent = trainer.steps, StepClock(trainer.device), 0
    times = [clock()]
    while len(times) <= TRIAL_STEPS and (len(times) <= WARM_UP + 1 or spent < TRIAL_SECONDS):
        trainer.step()
        clock.wait()
        times.append(clock())
        (spent,) = all_reduce_max(int(times[-1] - times[0]))  # several processes make the same steps
    step = (times[-1] - times[WARM_UP]) / (len(times) - 1 - WARM_UP)
    grid = clock.measure(FixedGrids(trainer.generators, trainer.dataset, config.seed).draw)
    score = clock.measure(lambda: evaluation.score(0)) if config.evaluate_every else 0.0
    total = max(first, count_steps(config, trainer.steps_per_epoch))
    seconds = estimate_seconds(config, first, total, step, grid, score)
    run = describe_run(config, len(pixels), trainer.steps_per_epoch, first)
    lines = [f"{run}: {describe_time(config, seconds)}"]
    is_gpu = trainer.device.type == "cuda"
    if peak := torch.cuda.max_memory_reserved(trainer.device) if is_gpu else read_resident_peak():
        lines.append(f"Memory in all, by {trainer.steps - first} steps and a grid: {peak / 2**20:,.0f} MiB")
    return "\n".join(lines)


def follow(trainer: MADDPG, evaluation: Evaluation, total: int) -> int:
    """All processes but the first do this: they make the same steps and write nothing. Returns the exit status."""
    stop = Stop()
    while should_continue(trainer, evaluation, total, stop):
        trainer.step()
    all_reduce_max(0)  # once the first has saved: torchrun may stop all when one ends
    return 128 + stop.signal if stop.signal else 0
