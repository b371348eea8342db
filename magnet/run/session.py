"""How a run begins: its settings, its data, its trainer; and where an earlier one stood."""

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
from magnet.run.checkpoint_validation import first_fault, refuse, restored_config, trainer_fault
from magnet.run.initial_networks import take_networks
from magnet.run.process_memory import peak
from magnet.run.signals import Stop, goes_on
from magnet.run.timing import ENOUGH, WARM_UP, Pace, StepClock, described, estimate, shorter, total_steps
from magnet.support.distributed import all_reduce_max, first_on_machine
from magnet.support.errors import UserError

LONGEST_TRIAL = 20  # seconds


def resumed(run: Path, named: Path | None, given: dict) -> tuple[Config, Path, dict]:
    """`run`'s checkpoint `named`, or its last good one: its config with what is `given`, its path and contents.

    Raises UserError if `given` asks for another game.
    """
    path, saved = (named, checkpoint.load_named(named)) if named else checkpoint.latest(run / "checkpoints")
    config = restored_config(path, saved["config"], told=True)
    given = {key: value for key, value in given.items() if value != "auto" or key not in ("precision", "threads")}
    if "OMP_NUM_THREADS" in os.environ or int(config.threads) > (os.cpu_count() or 1):  # torchrun; another machine
        config = dataclasses.replace(config, threads="auto")
    changed = sorted(k for k, v in given.items() if k not in FREE_ON_RESUME and v != getattr(config, k))
    if bool(given.get("extra_reward", config.extra_reward)) != bool(config.extra_reward):
        changed.append("extra_reward")
    if changed:
        flags = ", ".join(f"--{key.replace('_', '-')} (was {getattr(config, key)})" for key in changed)
        raise UserError(f"{run} cannot go on with other values of {flags}; leave them out, or start a new run.")
    print(f"Going on from {path}.")
    return dataclasses.replace(config, **given), path, saved


def parameters_of(path: Path) -> dict:
    """The parameters in another run's config.json, but its name. Raises UserError."""
    try:
        found = json.loads(path.read_text(encoding="utf-8-sig"))  # Windows' editors put a mark before it
    except (OSError, ValueError) as error:
        raise UserError(f"{path} cannot be read as a config.json ({error}); give that of a run in models/.") from error
    if not isinstance(found, dict):
        raise UserError(f"{path} holds no parameters; give the config.json of a run in models/.")
    return dataclasses.asdict(restored_config(path, found, told=True)) | {"name": "", "threads": "auto"}


def find_run(run: Path, models_dir: str) -> tuple[Path, Path | None]:
    """The folder of a run that is given by its folder, its name or one of its checkpoints, and that checkpoint.

    Raises UserError if there is none.
    """
    for place in (run, Path(models_dir) / run):
        if os.path.isdir(place / "checkpoints"):
            return place, None
        file = Path(os.path.abspath(place))
        if os.path.isfile(file) and file.parent.name == "checkpoints" and checkpoint.is_one(file):
            return file.parents[1], file
    if os.path.isfile(run):
        raise UserError(
            f"{run} is no checkpoint in a run's folder checkpoints; `train.py --init {shlex.quote(str(run))}` begins a "
            f"new run with its networks."
        )
    raise UserError(f"{run} is no run of MAGNET: it has no folder checkpoints; `ls {models_dir}` shows the runs.")


def load_reward(config: Config, named: dict, saved: dict | None = None) -> ExtraReward | None:
    """The extra reward of `config`. Raises UserError.

    named: the parameters that the user gave. A file is executed only if it stands there: never because a checkpoint or
    a config.json names it. saved: a checkpoint, from which the run goes on; its reward must be the same.
    """
    name = config.extra_reward
    if name and name not in EXTRA_REWARDS and convert(named).get("extra_reward") != name:
        raise UserError(
            f"The extra reward is the file {name}, which runs only if you name it: if you trust it, add "
            f"`--extra-reward {shlex.quote(name)}`."
        )
    environment = saved["trainer"].get("environment") if saved else None
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
    """Makes the GPU of a run the current one, and asks PyTorch for the fastest algorithms or for deterministic ones.

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
    config: Config, pixels, path: Path | None = None, saved: dict | None = None, extra: ExtraReward | None = None
) -> tuple[MADDPG, Evaluation]:
    """The trainer of `config` on pixels, as `load_pixels` gives them, and its scores so far, where `saved` stood.

    saved: the contents of the checkpoint `path`. extra: as `load_reward` gives it. Raises UserError.
    """
    prepare_device(config)  # before anything is on the device
    dataset = PointDataset(pixels, config.device) if config.points else ImageDataset(pixels, config.device)
    if saved and saved["faces"] != dataset.fingerprint:
        raise UserError(f"The images in {config.data} are not those that the run learned from; give these with --data.")
    refuse_too_few(config, len(dataset))
    trainer = MADDPG(config, new_environment(config, dataset, extra), torch.device(config.device))
    reference = trainer.dataset
    if config.evaluate_every and config.hold_out:  # the best checkpoint is chosen on images that training never sees
        reference = ImageDataset(load_pixels(config, held_out=True), config.device)
    evaluation = Evaluation(trainer.generators, reference, config)
    if saved:
        refuse(path, trainer_fault(saved["trainer"], trainer))
        trainer.load_state_dict(saved["trainer"])
        if saved["best"]:
            refuse(path, first_fault(saved["best"], evaluation.best, "best"))
            evaluation.best = saved["best"]
    elif config.init:
        print(take_networks(trainer.agents, config.init))
    return trainer, evaluation


def trial(config: Config, pixels, first: int, flags: dict | None, extra: ExtraReward | None = None) -> str:
    """What a run would take from its step `first` on, in two lines: steps and time, memory.

    It makes some steps, a grid and, if the run has scores, one of them, and throws them away. Images that stay in their
    file are not in the memory, which not every system tells. extra: as in `build`; flags: as in `shorter`.

    Raises UserError.
    """
    trainer, evaluation = build(config, pixels, extra=extra)
    clock = StepClock(trainer.device)
    pace, began = Pace(config, clock), clock()
    spent = 0
    while len(pace.spent) < ENOUGH and (len(pace.spent) <= WARM_UP or spent < LONGEST_TRIAL):
        trainer.step()
        pace.note(trainer.steps)
        (spent,) = all_reduce_max(int(clock() - began))  # several processes make the same steps
    grid = clock.seconds(FixedGrids(trainer.generators, trainer.dataset, config.seed).draw)
    score = clock.seconds(lambda: evaluation.after(0)) if config.evaluate_every else 0.0
    per_epoch, total = trainer.steps_per_epoch, max(first, total_steps(config, trainer.steps_per_epoch))
    time_left = estimate(config, pace.seconds(first, total, grid, score), shorter(config, flags, per_epoch, first))
    lines = [f"{described(config, len(pixels), per_epoch, first)}: {time_left}"]
    if taken := peak(trainer.device):
        lines.append(f"Memory in all, by {len(pace.spent)} steps and a grid: {taken / 2**20:,.0f} MiB")
    return "\n".join(lines)


def follow(trainer: MADDPG, evaluation: Evaluation, total: int) -> int:
    """What all of several processes but the first do: the same steps, and no writing. Returns the exit status."""
    stop = Stop()
    while goes_on(trainer, evaluation, total, stop):
        trainer.step()
    all_reduce_max(0)  # once the first has saved: torchrun may stop all when one ends
    return 128 + stop.signal if stop.signal else 0
