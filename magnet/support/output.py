"""What every program does with its output and with Ctrl-C.

Standard output and error go silent when their reader is gone (a closed terminal, `| head`), and escape the characters
that they lack (`PYTHONIOENCODING=ascii`, names of files that are no UTF-8).
"""

import functools
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, redirect_stderr, redirect_stdout, suppress
from pathlib import Path

STOPPED = 130  # the exit status after Ctrl-C


class Resilient:
    """A wrapper of `stream`. It escapes characters that the encoding lacks. After an OSError it discards all output."""

    def __init__(self, stream):
        self.stream = stream

    def write(self, text: str) -> int:
        """As the stream's own."""
        encoding = getattr(self.stream, "encoding", None) or "utf-8"
        return self._attempt(self.stream.write, text.encode(encoding, "backslashreplace").decode(encoding))

    def flush(self) -> None:
        """As the stream's own."""
        self._attempt(self.stream.flush)

    def _attempt(self, work, *arguments):
        try:
            return work(*arguments)
        except OSError:
            nowhere = os.open(os.devnull, os.O_WRONLY)
            os.dup2(nowhere, self.stream.fileno())  # Python flushes the stream once more when it ends
            os.close(nowhere)
            return len(arguments[0]) if arguments else None

    def __getattr__(self, name: str):
        return getattr(self.stream, name)


@contextmanager
def resilient_output() -> Iterator[None]:
    """Within, no print ends a program: neither where nobody reads, nor where a character cannot be written."""
    with redirect_stdout(Resilient(sys.stdout)), redirect_stderr(Resilient(sys.stderr)):
        yield


def as_program(main: Callable[..., int]) -> Callable[..., int]:
    """Makes `main`, which returns the exit status of a program, print resiliently and say one word after Ctrl-C."""
    word = f"{Path(main.__code__.co_filename).name}: stopped."

    def end_at_once(number, frame) -> None:
        """Handles SIGINT. It raises KeyboardInterrupt, but ends the program at once during an import.

        An import may swallow the exception or replace it; torch's does both.
        """
        while frame and not frame.f_code.co_filename.startswith("<frozen importlib"):
            frame = frame.f_back
        if not frame:
            raise KeyboardInterrupt
        with suppress(OSError):
            os.write(sys.stderr.fileno(), f"{word}\n".encode())
        os._exit(STOPPED)

    @functools.wraps(main)
    def guarded(*arguments, **named) -> int:
        usual = signal.getsignal(signal.SIGINT) is signal.default_int_handler
        with resilient_output(), ExitStack() as undone:
            if usual and threading.current_thread() is threading.main_thread():
                undone.callback(signal.signal, signal.SIGINT, signal.signal(signal.SIGINT, end_at_once))
            try:
                return main(*arguments, **named)
            except KeyboardInterrupt:
                print(word, file=sys.stderr)
                return STOPPED

    return guarded
