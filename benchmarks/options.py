"""The command line that the benchmarks share: how to measure, and behind that the words of train.py."""

import argparse

from magnet.config import PRESETS, Config, check, complete
from magnet.run import command_line
from magnet.support.devices import settle
from magnet.support.errors import UserError


def new_parser(about: str, repeats: int) -> argparse.ArgumentParser:
    """With --repeats (by default `repeats`), --threads and --cpu-time."""
    parser = argparse.ArgumentParser(
        description=about, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("--repeats", type=int, default=repeats, help=f"turns of a block of each (default {repeats})")
    parser.add_argument("--threads", type=int, help="of PyTorch on the CPU (default: PyTorch's own choice)")
    parser.add_argument(
        "--cpu-time", action="store_true", help="count the seconds that the process computes, not those that "
        "pass: with one thread, what others take of the machine is then left out",
    )  # fmt: skip
    return parser


def parse(parser: argparse.ArgumentParser, arguments: list[str]) -> tuple[argparse.Namespace, list[str], Config]:
    """The benchmark's own options, the words left for train.py, and the config that these give. Raises UserError."""
    options, words = parser.parse_known_args(arguments)
    given, commands = command_line.parse(words)
    if commands.resume or commands.config or commands.dry_run:
        raise UserError("a benchmark begins with fresh weights: leave out --resume, --config and --dry-run.")
    if given.get("extra_reward") or given.get("init"):
        raise UserError("a benchmark plays without --extra-reward and --init: leave them out.")
    if options.repeats < 1 or (options.threads is not None and options.threads < 1):
        raise UserError("--repeats and --threads must be at least 1.")
    config = complete(given, PRESETS[commands.preset])
    check(config)
    return options, words, settle(config)
