"""Where the programs and their files lie, and paths as a user writes them.

`~` means the home folder, also where the shell leaves it alone (`--data=~/photos`).
"""

import os
from pathlib import Path

PACKAGE = Path(__file__).resolve().parents[1]
INSTALLED = (PACKAGE.parent / "magnet_programs").is_dir()  # pip puts the programs there (pyproject.toml)
ROOT = PACKAGE.parent / "magnet_programs" if INSTALLED else PACKAGE.parent
CELEBA_64 = ROOT / "models" / "celeba-64.pt"  # models/README.md


def command_of(program: str) -> str:
    """Returns the command that starts a program, such as `train`."""
    return f"magnet-{program.replace('_', '-')}" if INSTALLED else f"python3 {program}.py"


def expand(path: str) -> str:
    """Replaces a leading `~` or `~NAME` by that home folder, if there is one."""
    try:
        return os.path.expanduser(path)
    except ValueError:  # a zero byte
        return path


def user_path(path: str | Path) -> Path:
    """Expands a path. It is the type of all paths on a command line."""
    return Path(expand(os.fspath(path)))
