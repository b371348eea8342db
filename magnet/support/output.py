"""What every program does with its output and with Ctrl-C.

Standard output and error go silent when their reader is gone (a closed terminal, `| head`). They escape characters
that their encoding lacks (`PYTHONIOENCODING=ascii`, names of files that are no UTF-8).
"""

import functools
import os
import signal
import sys
import threading
from collections.abc import Callable
from contextlib import ExitStack, redirect_stderr, redirect_stdout, suppress
from pathlib import Path

STATUS_AFTER_CTRL_C = 130


class ResilientStream:
    """A wrapper of a text stream. No write to it raises an exception."""

    def __init__(self, stream):
        self.stream = stream

    def write(self, text: str) -> int:
        """Writes `text` with the characters escaped that the encoding lacks."""
        encoding = getattr(self.stream, "encoding", None) or "utf-8"
        self._attempt(self.stream.write, text.encode(encoding, "backslashreplace").decode(encoding))
        return len(text)

    def flush(self) -> None:
        """Flushes the stream."""
        self._attempt(self.stream.flush)

    def _attempt(self, work: Callable, *arguments) -> None:
        try:
            work(*arguments)
        except OSError:
            devnull = os.open(os.devnull, os.O_WRONLY)
            os.dup2(devnull, self.stream.fileno())  # Python flushes the stream once more when it ends
            os.close(devnull)

    def __getattr__(self, name: str):
        return getattr(self.stream, name)


def as_program(main: Callable[..., int]) -> Callable[..., int]:
    """Makes `main`, which returns an exit status, print resiliently and say one word after Ctrl-C."""
    word = f"{Path(main.__code__.co_filename).name}: stopped."

    def handle_sigint(number, frame) -> None:
        """Raises KeyboardInterrupt, but ends the program at once during an import.

        An import may swallow the exception or replace it; torch's does both.
        """
        while frame and not frame.f_code.co_filename.startswith("<frozen importlib"):
            frame = frame.f_back
        if not frame:
            raise KeyboardInterrupt
        with suppress(OSError):
            os.write(sys.stderr.fileno(), f"{word}\n".encode())
        os._exit(STATUS_AFTER_CTRL_C)

    @functools.wraps(main)
    def run(*arguments, **options) -> int:
        has_default_handler = signal.getsignal(signal.SIGINT) is signal.default_int_handler
        with ExitStack() as stack:
            stack.enter_context(redirect_stdout(ResilientStream(sys.stdout)))
            stack.enter_context(redirect_stderr(ResilientStream(sys.stderr)))
            if has_default_handler and threading.current_thread() is threading.main_thread():
                stack.callback(signal.signal, signal.SIGINT, signal.signal(signal.SIGINT, handle_sigint))
            try:
                return main(*arguments, **options)
            except KeyboardInterrupt:
                print(word, file=sys.stderr)
                return STATUS_AFTER_CTRL_C

    return run
