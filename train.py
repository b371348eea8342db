#!/usr/bin/env python3
"""Trains MAGNET on a folder of faces: a generator agent and a discriminator agent play, and learn by MADDPG.

    python3 train.py                                    CelebA at 64x64 from data/celeba
    python3 train.py --preset cpu --data synthetic      synthetic faces at 32x32, minutes on two cores
    python3 train.py --resume models/2026-11-22_14-03-59

Exit status: 0 done; 1 the machine failed (disk, memory); 2 a mistake in the settings or the data; 3 a number is not
finite (the last good checkpoint stays); 130, 143, 129 stopped by Ctrl-C, SIGTERM or a closed terminal, and saved.
"""

PARAMETERS = {}  # parameters of new runs, such as {"lr": 1e-4}; the command line wins

import argparse
import dataclasses
import os
import sys
from contextlib import ExitStack
from pathlib import Path

from magnet.config import PRESETS, Config, check, complete
from magnet.run.command_line import parse
from magnet.support.errors import Diverged, MachineFailure, UserError, as_sentence
from magnet.support.output import as_program

# What imports torch is imported where it is needed: --help and a mistyped option are immediate.


def start(flags: dict, commands: argparse.Namespace, lock_stack: ExitStack) -> int:
    """Does what the command line asks for. Returns the exit status. Raises UserError and Diverged.

    flags, commands: as `parse` gives them. lock_stack: holds the run's lock.
    """
    from magnet.run.session import build, follow, load_pixels, load_reward, try_run
    from magnet.run.summary import describe_networks, describe_settings
    from magnet.run.timing import count_steps, describe_run
    from magnet.run.tuning import prepare_cpu
    from magnet.support import distributed

    config, requested, path, contents = choose_settings(flags, commands, lock_stack)

    # Data
    extra, pixels = load_reward(config, PARAMETERS | flags, contents), load_pixels(config)
    config = prepare_cpu(config, requested, is_new=not contents)
    print(describe_settings(config), describe_networks(config), sep="\n")
    if commands.dry_run:
        print(try_run(config, pixels, path, contents, extra))
        return 0

    # Trainer
    trainer, evaluation = build(config, pixels, path, contents, extra)
    del contents  # as large as the trainer
    distributed.require_equal(images=trainer.dataset.fingerprint, checkpoint=trainer.steps)
    total = count_steps(config, trainer.steps_per_epoch)
    if trainer.steps >= total:
        print(f"Nothing to do: {commands.resume} is at step {trainer.steps} of {total}; give more --steps or --epochs.")
        return 0
    if evaluation.is_over:
        print(f"Nothing to do: {evaluation.describe_end()}; give more --patience, or 0 for no limit.")
        return 0

    # Loop
    if distributed.rank() > 0:
        return follow(trainer, evaluation, total)
    print(describe_run(config, len(pixels), trainer.steps_per_epoch, trainer.steps))
    return lead(config, commands.resume, trainer, evaluation, total, lock_stack)


def choose_settings(flags: dict, commands: argparse.Namespace, lock_stack: ExitStack) -> tuple:
    """The run's Config; the same with `auto` as requested; the path and contents of its checkpoint, or None.

    Raises UserError.
    """
    from magnet.run.initial_networks import adopt_architecture
    from magnet.run.logger import lock_run
    from magnet.run.session import find_run, read_parameters, resume_run
    from magnet.run.summary import find_idle_flags, refuse_too_large
    from magnet.support import devices, distributed

    path, contents = None, None
    if commands.resume:
        commands.resume, checkpoint_path = find_run(commands.resume, complete(PARAMETERS | flags).models_dir)
        if distributed.rank() == 0:
            lock_stack.enter_context(lock_run(commands.resume))  # first: a running train.py deletes checkpoints
        requested, path, contents = resume_run(commands.resume, checkpoint_path, flags)
    else:
        base = read_parameters(commands.config) if commands.config else PRESETS[commands.preset]
        requested = complete({key: PARAMETERS[key] for key in PARAMETERS.keys() - base.keys()} | flags, base)
        requested = adopt_architecture(requested, PARAMETERS | flags)
    check(requested)
    config = devices.settle(requested)
    distributed.require_even_shares(config)
    distributed.require_equal(settings=dataclasses.asdict(config) | {"threads": ""}, dry_run=commands.dry_run)
    refuse_too_large(config)
    if idle := sorted(flags.keys() & find_idle_flags(config)):
        print("Without effect in this game: --" + ", --".join(idle).replace("_", "-"))
    return config, requested, path, contents


def train(config: Config, run: Path, trainer, evaluation, total: int, stop) -> None:
    """Steps `trainer` until `total`, and writes metrics, grids and checkpoints into `run`.

    It ends earlier if `stop`, a Stop, has a signal, or if `evaluation` is over. Raises Diverged and UserError.
    """
    from magnet.run.checkpoint import BEST
    from magnet.run.logger import write_progress
    from magnet.run.recorder import Recorder
    from magnet.run.signals import should_continue

    with Recorder(run, trainer, evaluation, total) as recorder:
        recorder.begin()
        while should_continue(trainer, evaluation, total, stop):
            scores = recorder.log(trainer.step())
            is_last = trainer.steps == total or evaluation.is_over
            if trainer.steps % config.sample_every == 0 or is_last:
                recorder.draw()
            if is_last:  # before the last checkpoint, so that a run killed in between still writes it when resumed
                write_progress(run)
            if scores and evaluation.best["step"] == trainer.steps:
                recorder.save(BEST)
            if trainer.steps % (config.checkpoint_every * trainer.steps_per_epoch) == 0:
                recorder.save()
        recorder.finish()


def lead(config: Config, run: Path | None, trainer, evaluation, total: int, lock_stack: ExitStack) -> int:
    """Trains in the folder `run`, a new one if it is None. Returns the exit status. Raises Diverged and UserError."""
    from magnet.run import checkpoint
    from magnet.run.logger import create_run, describe_environment, lock_run, write_json
    from magnet.run.signals import Stop, advise, build_resume_command
    from magnet.support import distributed

    stop = Stop()
    if not run:
        run = create_run(Path(config.models_dir), config.name)
        lock_stack.enter_context(lock_run(run))
    with advise(config, run):
        checkpoint.set_aside(run / "checkpoints", trainer.steps)
        write_json(run / "config.json", dataclasses.asdict(config))
        write_json(run / "environment.json", describe_environment(trainer.device))
        print(f"Run folder: {run}")
        train(config, run, trainer, evaluation, total, stop)
        distributed.all_reduce_max(0)  # `follow` waits for this: all is saved
    if stop.signal and trainer.steps < total:
        print(f"Stopped and saved at step {trainer.steps}; go on with: {build_resume_command(config, run)}")
        return 128 + stop.signal
    if evaluation.is_over:
        print(f"Ended early: {evaluation.describe_end()}.")
    elif evaluation.best["step"]:
        print(f"Best score: {evaluation.describe_best()}.")
    print(f"Done: {trainer.steps} steps. Grids: {run / 'samples'}; from the first to the last: {run / 'progress.gif'}")
    return 0


@as_program
def main(arguments: list[str] | None = None) -> int:
    """The program. Prints a failure as one sentence. Returns the exit status."""
    arguments = sys.argv[1:] if arguments is None else arguments
    try:
        with ExitStack() as lock_stack:
            if "TORCHELASTIC_RUN_ID" in os.environ:  # torchrun's
                from magnet.support.distributed import join_group

                lock_stack.enter_context(join_group())
            return start(*parse(arguments, __doc__, PARAMETERS), lock_stack)
    except UserError as error:
        status, sentence = 2, error
    except Diverged as error:
        status, sentence = 3, error
    except MachineFailure as error:
        status, sentence = 1, error
    except OSError as error:  # before the run began
        status, sentence = 1, as_sentence(error)
    except RuntimeError as error:
        if "memory" not in str(error):
            raise
        reason = str(error).splitlines()[0]
        status, sentence = 1, f"{reason}: give less --batch-size, --width, --image-size or --replay-size."
    print(f"train.py: {sentence}", file=sys.stderr)
    return status


if __name__ == "__main__":
    if "TORCHELASTIC_RUN_ID" in os.environ:
        from magnet.support.distributed import leave_after

        leave_after(main)
    else:
        sys.exit(main())
