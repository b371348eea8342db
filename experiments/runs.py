"""What the tables of experiments share: a run of train.py for each setting and seed, and a JSON line for each run.

    games = {("gan", 0): game(base | {"algorithm": "gan", "seed": 0}, steps=1000), ...}
    measure(options, games, protocol, score)

Several are trained at a time; what was stopped goes on.
"""

import argparse
import dataclasses
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path

from magnet.config import PRESETS, check, complete
from magnet.run.command_line import parse
from magnet.support.atomic_files import write_atomically
from magnet.support.errors import UserError

ROOT = Path(__file__).resolve().parents[1]
OWN = {"seed", "epochs", "steps", "keep", "name", "models_dir"}  # what a run gets from the table
NOT_OF_GAME = {"name", "models_dir", "keep"}


def words(flags: dict) -> list[str]:
    """Parameters of Config as words of its command line."""
    pairs = ((f"--{name.replace('_', '-')}", value) for name, value in flags.items() if value is not False)
    return [word for flag, value in pairs for word in ([flag] if value is True else [flag, str(value)])]


def game(flags: dict, steps: int) -> dict:
    """All that makes a run of so many steps what it is, by name: `flags`, and the defaults. Raises UserError."""
    # Not by epochs: how many images the discriminator sees in one depends on the setting.
    config = complete(flags | {"epochs": 1_000_000, "steps": steps})
    check(config)
    # With the defaults written out: should they change, what was measured before them does not count.
    return {name: value for name, value in dataclasses.asdict(config).items() if name not in NOT_OF_GAME}


def started(run: Path, flags: dict, threads: int) -> subprocess.Popen:
    """train.py, at work on the folder `run`, from its last checkpoint if it has one; what it says goes to run.log."""
    if any(run.glob("checkpoints/*.pt")):
        command = ["--resume", str(run)]
    else:
        shutil.rmtree(run, ignore_errors=True)  # killed before the first step
        command = ["--models-dir", str(run.parent), "--name", run.name]
    command = [sys.executable, str(ROOT / "train.py"), *command, *words(flags), "--keep", "1000000"]
    environment = {"OMP_NUM_THREADS": str(threads)} | os.environ
    with open(run.with_name(f"{run.name}.log"), "a") as log:
        # A session of its own: Ctrl-C reaches it from here alone, for a second signal would end it unsaved.
        return subprocess.Popen(
            command, env=environment, stdout=log, stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL,
            start_new_session=True,
        )  # fmt: skip


def trained(runs: dict[Path, dict], jobs: int) -> Iterator[tuple[Path, bool]]:
    """Trains runs (folder: flags), `jobs` at a time; yields each folder as it ends, and whether it ended well.

    A run that diverged did not. Raises UserError when train.py fails otherwise. Closing it stops, and saves, them all.
    """
    threads = max(1, (os.cpu_count() or 1) // jobs)
    waiting, running = list(runs), {}
    try:
        while waiting or running:
            while waiting and len(running) < jobs:
                run = waiting.pop(0)
                print(f"{run.name}: training", flush=True)
                running[run] = started(run, runs[run], threads)
            time.sleep(0.1)
            for run in [run for run, process in running.items() if process.poll() is not None]:
                status = running.pop(run).returncode
                if status not in (0, 3):
                    log = run.with_name(f"{run.name}.log")
                    said = log.read_text(errors="replace").strip().splitlines()[-1:]
                    raise UserError(f"train.py ended with {status} ({''.join(said)}); see {log}, fix it, and go on.")
                yield run, status == 0
    finally:
        for process in running.values():
            process.terminate()
        for process in running.values():
            process.wait()


def minutes_at(run: Path) -> dict[int, float]:
    """By step: the minutes that train.py's steps took up to there, without grids, scores, checkpoints, and steps made
    twice. Logs until 2026-11-27 count these but for the last.
    """
    minutes, total, log = {}, 0.0, run / "metrics.jsonl"
    for line in log.read_text().splitlines() if log.exists() else ():  # a run may diverge before the first line
        entry = json.loads(line)
        total += entry["steps"] * entry["images"] / entry["step"] / entry["images_per_second"] / 60
        minutes[entry["step"]] = total
    return minutes


def finished(out: Path, wanted: dict[tuple, dict]) -> set[tuple]:
    """(setting, seed) of the lines of `out`. Raises UserError if one of `wanted` was measured otherwise."""
    done = set()
    for line in out.read_text().splitlines() if out.exists() else ():
        try:
            result = json.loads(line)
            key = result["setting"], result["seed"]
            changed = [name for name, value in wanted.get(key, {}).items() if result[name] != value]
        except (ValueError, KeyError, TypeError) as error:
            raise UserError(f"{out} holds other lines than this program's ({error!r}); name another --out.") from error
        if changed:
            raise UserError(
                f"{out} holds {key[0]} of seed {key[1]} with other {', '.join(changed)}; ask for the same, or name "
                f"another --out and --models-dir."
            )
        done.add(key)
    return done


def measure(options: argparse.Namespace, games: dict[tuple, dict], protocol: dict, score: Callable[[Path], dict]):
    """Trains and scores what options.out lacks of `games`, (setting, seed): flags. Raises UserError.

    score: of a run's folder what is to stand in its line; protocol: how it does that.
    """
    from magnet.run.checkpoint import prune
    from magnet.run.logger import lock_run

    wanted = {key: {"flags": flags, "protocol": protocol} for key, flags in games.items()}
    options.models_dir.mkdir(parents=True, exist_ok=True)
    with lock_run(options.models_dir):
        done = finished(options.out, wanted)
        missing = {options.models_dir / f"{key[0]}-seed{key[1]}": key for key in games if key not in done}
        with closing(trained({run: games[key] for run, key in missing.items()}, options.jobs)) as ended:
            for run, well in ended:
                print(f"{run.name}: {'scoring' if well else 'diverged; scoring what there is'}", flush=True)
                setting, seed = missing[run]
                result = {"setting": setting, "seed": seed, "diverged": not well, "jobs": options.jobs}
                result |= wanted[setting, seed] | score(run)
                result["environment"] = json.loads((run / "environment.json").read_text())
                lines = options.out.read_text() if options.out.exists() else ""
                lines += json.dumps(result) + "\n"
                write_atomically(options.out, lambda file, lines=lines: file.write(lines.encode()))
                prune(run / "checkpoints", 1)  # they are large, and scored


def new_parser(description: str, settings: dict) -> argparse.ArgumentParser:
    """The words that the tables have in common."""
    parser = argparse.ArgumentParser(
        description=description, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("--list", action="store_true", help="show the table of settings, and stop")
    parser.add_argument("--only", nargs="+", choices=settings, default=list(settings), metavar="NAME", help="settings")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2], metavar="SEED", help="default 0 1 2")
    parser.add_argument("--jobs", type=int, default=1, help="runs at a time, which share the cores (default 1)")
    return parser


def at_least(parser: argparse.ArgumentParser, options: argparse.Namespace, **lowest: int) -> None:
    """Exits with 2 if an option is lower than it may be."""
    for name, low in lowest.items():
        if getattr(options, name) < low:
            parser.error(f"--{name} is {getattr(options, name)}, but must be at least {low}")


def base_of(parser: argparse.ArgumentParser, arguments: list[str]) -> dict:
    """The parameters of all runs, of words of train.py. Exits with 2 on a bad word."""
    given, commands = parse(arguments)
    if commands.resume or commands.config or commands.dry_run or OWN & given.keys():
        own = ", ".join(words(dict.fromkeys(OWN, True)))
        parser.error(f"--resume, --config, --dry-run and {own} are no flags of all runs")
    return PRESETS[commands.preset] | given


def show(settings: dict[str, tuple[str, dict]]) -> None:
    """Prints a table of settings, name: (question, flags)."""
    for name, (question, flags) in settings.items():
        print(f"{name:<16} {question}\n{'':<16} {' '.join(words(flags)) or '(the base alone)'}")


def finish(program: str, work: Callable[[], None], out: Path) -> int:
    """Does `work`, which writes `out`; returns the exit status, and says in a sentence what went wrong."""
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        work()
    except (UserError, OSError) as error:
        print(f"{program}: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("Stopped; the same command goes on from here.")
        return 130
    print(out)
    return 0
