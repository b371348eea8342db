"""Exceptions that MAGNET's programs print as a plain sentence."""


def one_line(text: str) -> str:
    """Escapes what would break the line of `text`, steer a terminal or has no encoding, as in names of files."""
    return "".join(c if c.isprintable() else ascii(c)[1:-1] for c in text)


class UserError(Exception):
    """A mistake that the user can fix: one sentence with the file or value and the command that fixes it.

    Programs print it in one line, without a traceback, and exit with status 2. download_celeba.py exits with 1, since
    its errors come from the network and the disk.
    """

    def __str__(self) -> str:
        return one_line(super().__str__())


def as_sentence(error: Exception) -> str:
    """The sentence that a program prints of `error`. That of an OSError lacks what to do."""
    return one_line(f"{error}; fix this and run the same command again.") if isinstance(error, OSError) else str(error)


class MachineFailure(Exception):
    """What the disk refused, and how to go on, in one sentence. train.py exits with status 1."""

    def __str__(self) -> str:
        return one_line(super().__str__())


class Diverged(Exception):
    """Training made a number that is not finite. The message names it and its step. train.py exits with status 3."""
