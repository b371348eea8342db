"""The exceptions that MAGNET's programs print as a plain sentence."""


def one_line(text: str) -> str:
    """`text` with all that would break its line, steer a terminal or has no encoding (as in names of files) escaped."""
    return "".join(c if c.isprintable() else ascii(c)[1:-1] for c in text)


class UserError(Exception):
    """A mistake that the user can fix: one sentence that names the file or value and the command that fixes it.

    Programs print it without a traceback and exit with status 2 (download_celeba.py with 1, since
    network and disk are at fault there). It stays one line whatever a file is called.
    """

    def __str__(self) -> str:
        return one_line(super().__str__())


class MachineFailure(Exception):
    """What the disk refused, and how to go on: one sentence. train.py exits with status 1."""

    def __str__(self) -> str:
        return one_line(super().__str__())


class Diverged(Exception):
    """A number that training made is not finite; the message names it and its step. train.py exits with status 3."""
