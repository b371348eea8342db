"""Standard output and error that go silent when their reader is gone: a closed terminal, `| head`."""

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout


class Resilient:
    """`stream`, whose writes go nowhere from the first that fails with an OSError on."""

    def __init__(self, stream):
        self.stream = stream

    def write(self, text: str) -> int:
        """As the stream's own."""
        return self._attempt(self.stream.write, text)

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
    """Within, a program goes on when nobody reads what it prints."""
    with redirect_stdout(Resilient(sys.stdout)), redirect_stderr(Resilient(sys.stderr)):
        yield
