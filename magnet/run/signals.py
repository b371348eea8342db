"""When a run stops: at its last step, when its scores get no better, or by a signal."""

import signal

from magnet.support.distributed import all_reduce_max


class Stop:
    """Notes SIGINT and SIGTERM, so that the step is finished and saved; a second signal ends the program at once."""

    def __init__(self):
        self.signal = 0  # none
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, self.note)

    def note(self, number, frame) -> None:
        """The signal handler."""
        self.signal = number
        for either in (signal.SIGINT, signal.SIGTERM):
            signal.signal(either, signal.SIG_DFL)


def goes_on(trainer, evaluation, total: int, stop: Stop) -> bool:
    """Whether there is another step to do. Of several processes all get the same answer, and the same `stop.signal`."""
    signalled, ended = all_reduce_max(stop.signal, evaluation.patience_ended)
    if signalled:  # never back to 0: this process may have got a signal since
        stop.signal = signalled
    return trainer.steps < total and not signalled and not ended
