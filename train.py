#!/usr/bin/env python3
"""Trains MAGNET on a folder of faces: a generator agent and a discriminator agent play, and learn by MADDPG.

    python3 train.py                                    CelebA at 64x64 from data/celeba
    python3 train.py --preset cpu --data synthetic      drawn faces at 32x32, minutes on two cores
    python3 train.py --resume models/2026-11-22_14-03-59

Exit status: 0 done, 1 a failure of the machine (disk, memory), 2 a mistake in the settings or the data, 3 not finite
(the last good checkpoint stays), 130 and 143 stopped by SIGINT or SIGTERM after the step was finished and saved.
"""

import argparse
import dataclasses
import json
import math
import os
import sys
from contextlib import ExitStack
from pathlib import Path

from tqdm import tqdm

from magnet.config import CACHE, FREE_ON_RESUME, PRESETS, Config, check, complete, restored_config, settle
from magnet.support.errors import Diverged, UserError

# What imports torch is imported where it is needed: --help and a wrong word answer at once.

LOG_EVERY = 20  # steps: metrics are read back from the device, checked and written together


def parse(arguments: list[str]) -> tuple[dict, argparse.Namespace]:
    """The parameters that the command line gives, and its commands (preset, resume, dry_run). Others exit with 2."""
    parser = argparse.ArgumentParser(
        prog="train.py", usage="%(prog)s [--preset NAME | --resume RUN] [--dry-run] [parameters]; --help lists them",
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter,
    )  # fmt: skip
    parser.add_argument("--preset", choices=PRESETS, help="a set of parameters; flags beside it win")
    parser.add_argument("--resume", metavar="RUN", type=Path, help="go on with a run folder, from its last checkpoint")
    parser.add_argument(
        "--dry-run", action="store_true", help="tell the settings and the memory that two steps need, and stop"
    )
    sources = "[M]: as the published MAGNET, [L]: as Lowe et al. 2017 (MADDPG), [D]: chosen here, see docs/results.md"
    group = parser.add_argument_group("parameters", sources)
    for field in dataclasses.fields(Config):
        flag, about = f"--{field.name.replace('_', '-')}", field.metadata["about"]
        if field.type is bool:
            group.add_argument(flag, action="store_true", default=argparse.SUPPRESS, help=about)
        else:
            choices = field.metadata["choices"] or None
            shown = f"{about} (default {field.default!r})"
            group.add_argument(flag, type=field.type, choices=choices, default=argparse.SUPPRESS, help=shown)
    given = parser.parse_args(arguments)
    if given.resume and given.preset:
        parser.error("--preset begins a run and --resume goes on with one: give one of them")
    commands = argparse.Namespace(preset=given.preset or "default", resume=given.resume, dry_run=given.dry_run)
    return {key: value for key, value in vars(given).items() if key not in vars(commands)}, commands


def resumed(run: Path, given: dict) -> tuple[Config, Path, dict]:
    """`run`'s last good checkpoint: its config with what is `given`, its path and contents.

    Raises UserError if `given` asks for another game.
    """
    from magnet.run import checkpoint

    path, saved = checkpoint.latest(run / "checkpoints")
    config = restored_config(path, saved)
    if given.get("precision") == "auto":
        given = {key: value for key, value in given.items() if key != "precision"}
    changed = sorted(k for k, v in given.items() if k not in FREE_ON_RESUME and v != getattr(config, k))
    if changed:
        flags = ", ".join(f"--{key.replace('_', '-')} (was {getattr(config, key)})" for key in changed)
        raise UserError(f"{run} cannot go on with other values of {flags}; leave them out, or start a new run.")
    print(f"Going on from {path}.")
    return dataclasses.replace(config, **given), path, saved


def train(config: Config, run: Path, trainer, evaluation, total: int, stop) -> None:
    """Steps `trainer` until `total`, writing metrics, grids and checkpoints into `run`.

    Less if `stop`, a Stop, has a signal, or if `evaluation` has lost its patience.

    Raises Diverged and UserError.
    """
    from magnet.evaluation.sampling import FixedGrids
    from magnet.run import checkpoint
    from magnet.run.logger import RunLogger, write_progress
    from magnet.run.signals import goes_on

    per_epoch, last_epoch = trainer.steps_per_epoch, math.ceil(total / trainer.steps_per_epoch)
    grids = FixedGrids(trainer.generators, trainer.faces, config.seed)
    unit = "point" if config.points else "image"

    def show(line: dict | None) -> None:
        if line:
            g, d = trainer.generators[0].name, trainer.discriminators[0].name
            bar.set_postfix_str(
                f"return G {line[f'{g}/return']:.2f} D {line[f'{d}/return']:.2f},"
                f" D right on real {line[f'{d}/accuracy_real']:.0%} fake {line[f'{d}/accuracy_fake']:.0%}"
            )

    def draw() -> None:
        for kind, images in grids.draw().items():
            book.picture(kind, images)

    def save(name: str) -> None:
        show(book.flush())  # first: what is not finite is not saved
        book.tensorboard.flush()  # it writes in a thread, and what goes on from this checkpoint does not write it again
        state = {"config": dataclasses.asdict(config), "faces": trainer.faces.fingerprint}
        state |= {"trainer": trainer.state_dict(), "best": evaluation.best}
        checkpoint.save(run / "checkpoints" / name, state)
        checkpoint.prune(run / "checkpoints", config.keep)

    with (
        RunLogger(run, trainer.steps, config.batch_size, LOG_EVERY) as book,
        tqdm(total=total * config.batch_size, initial=trainer.images_seen, unit=unit, dynamic_ncols=True) as bar,
    ):
        saved_at = trainer.steps
        if trainer.steps == 0:
            draw()
            save("000000.pt")  # so that a run killed at any moment can go on
        while goes_on(trainer, evaluation, total, stop):
            metrics = trainer.step()
            scores = evaluation.after(trainer.steps)
            show(book.add(metrics, scores))
            bar.update(config.batch_size)
            bar.set_description(f"epoch {1 + (trainer.steps - 1) // per_epoch}/{last_epoch}", refresh=False)
            ended = trainer.steps == total or evaluation.patience_ended
            if trainer.steps % config.sample_every == 0 or ended:
                draw()
            if ended:  # before the last checkpoint: after it there is nothing to go on with
                write_progress(run)
            if scores and evaluation.best["step"] == trainer.steps:
                save(checkpoint.BEST)
            if trainer.steps % (config.checkpoint_every * per_epoch) == 0:
                save(f"{trainer.steps:06d}.pt")
                saved_at = trainer.steps
        if trainer.steps != saved_at:
            save(f"{trainer.steps:06d}.pt")


def build(config: Config, pixels, path: Path | None, saved: dict | None):
    """The trainer of `config` on pixels (N, 3, S, S), and its scores so far, at the step where `saved` stood.

    saved: the contents of the checkpoint `path`. Raises UserError.
    """
    import torch

    from magnet.data.gaussians import PointDataset
    from magnet.data.image_dataset import ImageDataset
    from magnet.evaluation.scores import Evaluation
    from magnet.game.environment import new_environment
    from magnet.maddpg import MADDPG
    from magnet.run.checkpoint_validation import first_fault, refuse, trainer_fault

    faces = PointDataset(pixels, config.device) if config.points else ImageDataset(pixels, config.device)
    if saved and saved["faces"] != faces.fingerprint:
        raise UserError(f"The images in {config.data} are not those that the run learned from; give these with --data.")
    try:
        trainer = MADDPG(config, new_environment(config, faces), torch.device(config.device))
    except ValueError as error:
        raise UserError(f"{config.data}: {error}; give more images or a smaller --batch-size.") from error
    evaluation = Evaluation(trainer.generators, trainer.faces, config)
    if saved:
        refuse(path, trainer_fault(saved["trainer"], trainer))
        trainer.load_state_dict(saved["trainer"])
        if saved["best"]:
            refuse(path, first_fault(saved["best"], evaluation.best, "best"))
            evaluation.best = saved["best"]
    return trainer, evaluation


def trial(config: Config, pixels) -> int | None:
    """Bytes that the process has at its peak if it trains: it makes two steps and a grid, and throws them away.

    Images that stay in their file are not among them. None where the system does not tell. Raises UserError.
    """
    from magnet.evaluation.sampling import FixedGrids
    from magnet.run.process_memory import peak

    trainer, _ = build(config, pixels, None, None)
    for _ in range(2):  # in the first the ring has nothing to be learned from
        trainer.step()
    FixedGrids(trainer.generators, trainer.faces, config.seed).draw()
    return peak(trainer.device)


def start(given: dict, commands: argparse.Namespace, owned: ExitStack) -> int:
    """Does what the command line asks for; returns the exit status. Raises UserError and Diverged.

    owned: where the run's lock is held.
    """
    from magnet.config import without_effect
    from magnet.data.gaussians import draw_points
    from magnet.data.image_dataset import load_faces
    from magnet.run import checkpoint
    from magnet.run.logger import describe_environment, new_run, sole_owner, write_json
    from magnet.run.signals import Stop, goes_on
    from magnet.run.summary import refuse_too_large, summary
    from magnet.support import distributed

    run, path, saved, first = commands.resume, None, None, distributed.rank() == 0
    if run:
        if not os.path.isdir(run / "checkpoints"):
            raise UserError(f"{run} is no run of MAGNET: it has no folder checkpoints; `ls models` shows the runs.")
        if first:
            owned.enter_context(sole_owner(run))  # before all else: an owner writes and deletes checkpoints
        config, path, saved = resumed(run, given)
    else:
        config = complete(PRESETS[commands.preset] | given)
    check(config)
    config = settle(config)
    distributed.refuse_uneven(config)
    distributed.refuse_differing(settings=dataclasses.asdict(config), dry_run=commands.dry_run)
    refuse_too_large(config)
    if idle := sorted(given.keys() & without_effect(config)):
        print("Without effect in this game: --" + ", --".join(idle).replace("_", "-"))
    print(json.dumps(dataclasses.asdict(config), indent=2))
    if config.points:
        pixels = draw_points(config.data)
    else:
        with distributed.first_on_machine():
            pixels = load_faces(
                config.data, config.image_size, cache_dir=CACHE, skip_bad_images=config.skip_bad_images,
                hold_out=config.hold_out,
            )  # fmt: skip
    print(summary(config, len(pixels)))
    if commands.dry_run:
        del saved
        if taken := trial(config, pixels):
            print(f"{'memory in all, by two steps and a grid':<40} {taken / 2**20:>12,.0f} MiB")
        return 0

    trainer, evaluation = build(config, pixels, path, saved)
    distributed.refuse_differing(images=trainer.faces.fingerprint, checkpoint=trainer.steps)
    del saved  # as large as the trainer
    total = config.epochs * trainer.steps_per_epoch
    total = min(total, config.steps) if config.steps else total
    if trainer.steps >= total:
        print(f"Nothing to do: {run} is at step {trainer.steps} of {total}; give more --steps or --epochs.")
        return 0
    if evaluation.patience_ended:
        print(f"Nothing to do: {evaluation.verdict(run)}; give more --patience, or 0 for no limit.")
        return 0
    stop = Stop()
    if not first:
        while goes_on(trainer, evaluation, total, stop):
            trainer.step()
        distributed.all_reduce_max(0)  # once the first has saved: torchrun may stop all when one ends
        return 128 + stop.signal if stop.signal else 0
    if not run:
        run = new_run(Path(config.models_dir), config.name)
        owned.enter_context(sole_owner(run))
    checkpoint.set_aside(run / "checkpoints", trainer.steps)
    write_json(run / "config.json", dataclasses.asdict(config))
    write_json(run / "environment.json", describe_environment(trainer.device))
    print(f"Run folder: {run}")
    try:
        train(config, run, trainer, evaluation, total, stop)
        distributed.all_reduce_max(0)
    except Diverged as error:
        again = f"`python3 train.py --resume {run} --lr {config.lr / 2:g}`"
        raise Diverged(f"{error}; the last good checkpoint stays, go on from it with {again}.") from error
    if stop.signal:
        print(f"Stopped and saved at step {trainer.steps}; go on with: python3 train.py --resume {run}")
        return 128 + stop.signal
    if evaluation.patience_ended:
        print(f"Ended early: {evaluation.verdict(run)}.")
    elif evaluation.best["step"]:
        best = evaluation.best
        print(f"Best score: {best[evaluation.score]:.2f} at step {best['step']} (checkpoints/best.pt).")
    print(f"Done: {trainer.steps} steps. Grids: {run / 'samples'}; from the first to the last: {run / 'progress.gif'}")
    return 0


def main(arguments: list[str] | None = None) -> int:
    """The program; returns its exit status. Says in a sentence what went wrong."""
    try:
        with ExitStack() as owned:
            if "TORCHELASTIC_RUN_ID" in os.environ:  # torchrun's
                from magnet.support.distributed import group

                owned.enter_context(group())
            given, commands = parse(sys.argv[1:] if arguments is None else arguments)
            return start(given, commands, owned)
    except UserError as error:
        status, sentence = 2, error
    except Diverged as error:
        status, sentence = 3, error
    except KeyboardInterrupt:  # before the run began
        status, sentence = 130, "stopped."
    except OSError as error:
        status, sentence = 1, f"{error}; the run goes on from its last checkpoint with --resume."
    except RuntimeError as error:
        if "memory" not in str(error):
            raise
        reason = str(error).splitlines()[0]
        status, sentence = 1, f"{reason}: less --batch-size, --width, --image-size or --replay-size takes less memory."
    print(f"train.py: {sentence}", file=sys.stderr)
    return status


if __name__ == "__main__":
    if "TORCHELASTIC_RUN_ID" in os.environ:
        from magnet.support.distributed import leave_after

        leave_after(main)
    sys.exit(main())
