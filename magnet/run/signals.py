"""When a run stops: at its last step, when its scores get no better, or by a signal."""

import shlex
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from magnet.run.checkpoint import is_checkpoint_name
from magnet.support.distributed import all_reduce_max
from magnet.support.errors import Diverged, MachineFailure
from magnet.support.paths import command_of

# Ctrl-C, what ends a job, and a terminal that is closed (there is none on Windows).
HANGUP = getattr(signal, "SIGHUP", None)
SIGNALS = [signal.SIGINT, signal.SIGTERM, *([HANGUP] if HANGUP else [])]


class Stop:
    """Notes SIGNALS, so that the run finishes its step and saves. A second signal ends the program at once."""

    def __init__(self):
        self.signal = 0  # none
        is_ignored = HANGUP and signal.getsignal(HANGUP) == signal.SIG_IGN  # by nohup: it stays so
        self.numbers = [number for number in SIGNALS if number != HANGUP or not is_ignored]
        for number in self.numbers:
            signal.signal(number, self.note)

    def note(self, number, frame) -> None:
        """The signal handler."""
        self.signal = number
        for one in self.numbers:
            signal.signal(one, signal.SIG_DFL)


def should_continue(trainer, evaluation, total: int, stop: Stop) -> bool:
    """Whether there is another step to make. All processes get the same answer, and the same `stop.signal`."""
    signalled, is_over = all_reduce_max(stop.signal, evaluation.is_over)
    if signalled:  # never back to 0: this process may have got a signal since
        stop.signal = signalled
    return trainer.steps < total and not signalled and not is_over


def build_resume_command(config, run: Path) -> str:
    """The command that goes on with `run`. It names a file with an extra reward, as session.load_reward wants."""
    reward = f" --extra-reward {shlex.quote(config.extra_reward)}" if config.extra_reward.endswith(".py") else ""
    return f"{command_of('train')} --resume {shlex.quote(str(run))}{reward}"


@contextmanager
def advise(config, run: Path) -> Iterator[None]:
    """Within, a failure says what to do next: to go on from the run's last checkpoint, if there is one.

    Raises Diverged, and MachineFailure for an OSError.
    """
    try:
        yield
    except Diverged as error:
        lower = f" --lr {config.lr / 2:g}"
        again = f"the last good checkpoint stays, go on from it with `{build_resume_command(config, run)}{lower}`"
        raise Diverged(f"{error}; {again if has_checkpoint(run) else f'begin a new run with{lower}'}.") from error
    except OSError as error:
        reason = f"{error}" if error.filename or not error.errno else f"{run}: {error}"
        again = f"fix this, then go on from the last checkpoint with `{build_resume_command(config, run)}`"
        none = "fix this and run the same command again; there is no checkpoint yet"
        raise MachineFailure(f"{reason}; {again if has_checkpoint(run) else none}.") from error


def has_checkpoint(run: Path) -> bool:
    """Whether `run` has a checkpoint to go on from."""
    return any(map(is_checkpoint_name, (run / "checkpoints").glob("*.pt")))
