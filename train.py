#!/usr/bin/env python3
"""Trains MAGNET on a folder of faces: a generator agent and a discriminator agent play, and learn by MADDPG.

    python3 train.py                                    CelebA at 64x64 from data/celeba
    python3 train.py --preset cpu --data synthetic      synthetic faces at 32x32, minutes on two cores
    python3 train.py --resume models/2026-11-22_14-03-59

Exit status: 0 done, 1 a failure of the machine (disk, memory), 2 a mistake in the settings or the data, 3 not finite
(the last good checkpoint stays), 130, 143 and 129 stopped by Ctrl-C, SIGTERM or a closed terminal, saved.
"""

PARAMETERS = {}  # parameters of new runs: change them here, or on the command line, which wins: {"lr": 1e-4}

import argparse
import dataclasses
import os
import sys
from contextlib import ExitStack
from pathlib import Path

from magnet.config import PRESETS, Config, check, complete
from magnet.run.command_line import parse
from magnet.support.errors import Diverged, MachineFailure, UserError, one_line
from magnet.support.output import as_program

# What imports torch is imported where it is needed: --help and a mistyped option are immediate.


def start(given: dict, commands: argparse.Namespace, owned: ExitStack) -> int:
    """Does what the command line asks for; returns the exit status. Raises UserError and Diverged.

    owned: where the run's lock is held.
    """
    from magnet.run.session import build, follow, load_pixels, load_reward, trial
    from magnet.run.summary import changed, summary
    from magnet.run.timing import described, shorter, total_steps
    from magnet.run.tuning import prepare_cpu
    from magnet.support import distributed

    config, asked, path, saved = settings(given, commands, owned)
    flags = None if commands.resume or commands.config or commands.preset != "default" else given

    # Data
    extra, pixels = load_reward(config, PARAMETERS | given, saved), load_pixels(config)
    config = prepare_cpu(config, asked, new=not saved)
    print(changed(config), summary(config, len(pixels)), sep="\n")
    if commands.dry_run:
        print(trial(config, pixels, saved["trainer"]["steps"] if saved else 0, flags, extra))
        return 0

    # Trainer
    trainer, evaluation = build(config, pixels, path, saved, extra)
    del saved  # as large as the trainer
    distributed.require_equal(images=trainer.dataset.fingerprint, checkpoint=trainer.steps)
    total = total_steps(config, trainer.steps_per_epoch)
    if trainer.steps >= total:
        print(f"Nothing to do: {commands.resume} is at step {trainer.steps} of {total}; give more --steps or --epochs.")
        return 0
    if evaluation.patience_ended:
        print(f"Nothing to do: {evaluation.verdict(commands.resume)}; give more --patience, or 0 for no limit.")
        return 0

    # Loop
    if distributed.rank() > 0:
        return follow(trainer, evaluation, total)
    print(described(config, len(pixels), trainer.steps_per_epoch, trainer.steps))
    less = shorter(config, flags, trainer.steps_per_epoch, trainer.steps)
    return lead(config, commands.resume, trainer, evaluation, total, less, owned)


def settings(given: dict, commands: argparse.Namespace, owned: ExitStack) -> tuple:
    """The run's Config, and as asked for, with auto; its checkpoint's path and contents or None. Raises UserError."""
    from magnet.run.initial_networks import with_sizes_of_init
    from magnet.run.logger import sole_owner
    from magnet.run.session import find_run, parameters_of, resumed
    from magnet.run.summary import refuse_too_large, without_effect
    from magnet.support import devices, distributed

    run, path, saved = commands.resume, None, None
    if run:
        run, named = find_run(run, complete(PARAMETERS | given).models_dir)
        commands.resume = run
        if distributed.rank() == 0:
            owned.enter_context(sole_owner(run))  # before all else: an owner writes and deletes checkpoints
        config, path, saved = resumed(run, named, given)
    else:
        base = parameters_of(commands.config) if commands.config else PRESETS[commands.preset]
        config = complete({key: PARAMETERS[key] for key in PARAMETERS.keys() - base.keys()} | given, base)
        config = with_sizes_of_init(config, PARAMETERS | given)
    check(config)
    asked, config = config, devices.settle(config)
    distributed.require_even_shares(config)
    distributed.require_equal(settings=dataclasses.asdict(config) | {"threads": ""}, dry_run=commands.dry_run)
    refuse_too_large(config)
    if idle := sorted(given.keys() & without_effect(config)):
        print("Without effect in this game: --" + ", --".join(idle).replace("_", "-"))
    return config, asked, path, saved


def train(config: Config, run: Path, trainer, evaluation, total: int, less: str, stop) -> None:
    """Steps `trainer` until `total`, writing metrics, grids and checkpoints into `run`.

    Ends earlier if `stop`, a Stop, has a signal, or if `evaluation` has lost its patience. less: the flags that make
    the run shorter, to be shown with its time. Raises Diverged and UserError.
    """
    from magnet.run.checkpoint import BEST
    from magnet.run.logger import write_progress
    from magnet.run.recorder import Recorder
    from magnet.run.signals import goes_on

    with Recorder(run, trainer, evaluation, total, less) as recorder:
        recorder.begin()
        while goes_on(trainer, evaluation, total, stop):
            scores = recorder.log(trainer.step())
            ended = trainer.steps == total or evaluation.patience_ended
            if trainer.steps % config.sample_every == 0 or ended:
                recorder.draw()
            if ended:  # before the last checkpoint: a run that is killed in between goes on from the one before
                write_progress(run)
            if scores and evaluation.best["step"] == trainer.steps:
                recorder.save(BEST)
            if trainer.steps % (config.checkpoint_every * trainer.steps_per_epoch) == 0:
                recorder.save()
        recorder.finish()


def lead(config: Config, run: Path | None, trainer, evaluation, total: int, less: str, owned: ExitStack) -> int:
    """Trains in the folder `run`, a new one if it is None. Returns the exit status. Raises Diverged and UserError.

    less: as of `train`.
    """
    from magnet.run import checkpoint
    from magnet.run.logger import describe_environment, new_run, sole_owner, write_json
    from magnet.run.signals import Stop, advised, resume_command
    from magnet.support import distributed

    stop = Stop()
    if not run:
        run = new_run(Path(config.models_dir), config.name)
        owned.enter_context(sole_owner(run))
    with advised(config, run):
        checkpoint.set_aside(run / "checkpoints", trainer.steps)
        write_json(run / "config.json", dataclasses.asdict(config))
        write_json(run / "environment.json", describe_environment(trainer.device))
        print(f"Run folder: {run}")
        train(config, run, trainer, evaluation, total, less, stop)
        distributed.all_reduce_max(0)
    if stop.signal and trainer.steps < total:
        print(f"Stopped and saved at step {trainer.steps}; go on with: {resume_command(config, run)}")
        return 128 + stop.signal
    if evaluation.patience_ended:
        print(f"Ended early: {evaluation.verdict(run)}.")
    elif evaluation.best["step"]:
        best = evaluation.best
        print(f"Best score: {best[evaluation.score]:.2f} at step {best['step']} (checkpoints/best.pt).")
    print(f"Done: {trainer.steps} steps. Grids: {run / 'samples'}; from the first to the last: {run / 'progress.gif'}")
    return 0


@as_program
def main(arguments: list[str] | None = None) -> int:
    """The program; says in a sentence what went wrong. Returns its exit status."""
    arguments = sys.argv[1:] if arguments is None else arguments
    try:
        with ExitStack() as owned:
            if "TORCHELASTIC_RUN_ID" in os.environ:  # torchrun's
                from magnet.support.distributed import join_group

                owned.enter_context(join_group())
            return start(*parse(arguments, __doc__, PARAMETERS), owned)
    except UserError as error:
        status, sentence = 2, error
    except Diverged as error:
        status, sentence = 3, error
    except MachineFailure as error:
        status, sentence = 1, error
    except OSError as error:  # before the run began
        status, sentence = 1, one_line(f"{error}; fix this and run the same command again.")
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
    else:
        sys.exit(main())
