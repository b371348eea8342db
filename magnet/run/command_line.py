"""The command line of train.py, made from the fields of Config; experiments and benchmarks take it too."""

import argparse
import dataclasses

from magnet.config import PRESETS, Config, convert
from magnet.data.cache import add_cache_flag
from magnet.support.paths import user_path


def describe_presets() -> str:
    """The sources, and each preset with what it sets, for the help."""
    lines = [f"  {name:<12}" + " ".join(f"{key}={value}" for key, value in PRESETS[name].items()) for name in PRESETS]
    sources = "[M]: as the published MAGNET, [L]: as Lowe et al. 2017 (MADDPG), [D]: see docs/differences.md"
    return sources + "\npresets:\n" + "\n".join(line.rstrip() for line in lines)


def parse(
    arguments: list[str], about: str | None = None, parameters: dict | None = None
) -> tuple[dict, argparse.Namespace]:
    """The parameters that are given, and the commands preset, config, resume and dry_run. Other words exit with 2.

    parameters: PARAMETERS of train.py, whose names are checked.
    """
    parser = argparse.ArgumentParser(
        prog="train.py",
        usage="%(prog)s [--preset NAME | --config FILE | --resume RUN] [--dry-run] [parameters]; --help lists them",
        description=about, epilog=describe_presets(), formatter_class=argparse.RawDescriptionHelpFormatter,
    )  # fmt: skip
    begin = parser.add_mutually_exclusive_group()
    begin.add_argument("--preset", choices=PRESETS, default="default", help="a set of parameters; flags beside it win")
    begin.add_argument("--config", metavar="FILE", type=user_path, help="those of another run's config.json; flags win")
    begin.add_argument(
        "--resume", metavar="RUN", type=user_path,
        help="continue a run (its folder or name) from its last checkpoint, or from an earlier checkpoint file",
    )  # fmt: skip
    parser.add_argument(
        "--dry-run", action="store_true",
        help="run some steps, print the settings, time and memory of a run, and stop",
    )  # fmt: skip
    fields = {field.name: field for field in dataclasses.fields(Config)}
    for field in fields.values():
        if title := field.metadata["group"]:
            group = parser.add_argument_group(title)
            if title == "data":
                add_cache_flag(group)
        flag, about = f"--{field.name.replace('_', '-')}", field.metadata["about"]
        if field.type is bool:
            options = {"action": argparse.BooleanOptionalAction, "help": about}
        else:
            options = {"type": field.type, "choices": field.metadata["choices"] or None}
            options["help"] = f"{about} (default {field.default!r})"
        group.add_argument(flag, default=argparse.SUPPRESS, **options)
    if unknown := sorted((parameters or {}).keys() - fields.keys()):
        parser.error(f"PARAMETERS in train.py has no such parameters as {', '.join(unknown)}; --help lists them")
    values = vars(parser.parse_args(arguments))
    commands = argparse.Namespace(**{name: values.pop(name) for name in ("preset", "config", "resume", "dry_run")})
    return convert(values), commands
