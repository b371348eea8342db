#!/usr/bin/env python3
"""Trains a named table of settings, over seeds, and scores every checkpoint: what is each part of the game worth?

    python3 experiments/ablation.py --list
    python3 experiments/ablation.py --out results.jsonl --seeds 0 1 2
    python3 experiments/ablation.py --out results.jsonl --only default gan --jobs 2 --images 1200000 --nz 32

All further words are train.py's flags, for every run: the base, on which a setting has its say. All runs see equally
many images. A line of the output is a run: its flags, its scores by checkpoint, the minutes that train.py took, and
where. Stop it at any time: the same command goes on with the runs in progress, and leaves finished lines alone. Of a
finished run the last checkpoint stays.
Exit status: 0 done, 2 a mistake in the settings or a run that failed, said in one sentence, 130 stopped.
"""

import argparse
import dataclasses
import functools
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

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

import train  # noqa: E402
from magnet.config import PRESETS, Config, check, complete, settle  # noqa: E402
from magnet.errors import UserError  # noqa: E402
from magnet.files import write_atomically  # noqa: E402

BASE = ["--preset", "cpu", "--checkpoint-every", "5"]
OWN = {"seed", "epochs", "steps", "keep", "name", "models_dir"}  # what a run gets from here
NOT_OF_GAME = {"name", "models_dir", "keep"}
OF_IMAGES = ("data", "skip_bad_images", "hold_out", "image_size")
IMAGES = 598_400  # 50 epochs of the base over 9,000 faces
CRITICS_ALONE = {"lambda_generator": 0.0, "lambda_discriminator": 0.0}

# name: the question, and the flags that differ from the base. At lambda 1 no actor hears its critic, so what concerns
# critics is asked at lambda 0.
SETTINGS = {
    "default": ("what the others are compared with", {}),
    "lambda-0": ("can actors learn through their critics alone?", CRITICS_ALONE),
    "gan": ("is the game worth its price?", {"algorithm": "gan", "answers": 1, "latent_step": 0.0}),
    "gan-same": ("is it worth more than a GAN with as many fakes and latent steps?", {"algorithm": "gan"}),
    "answers-1": ("are answers that are not played worth their price?", {"answers": 1}),
    "latent-step-0": ("do steps of z up D's slope help?", {"latent_step": 0.0}),
    "r1-0": ("must D_a's slopes be penalised?", {"r1": 0.0}),
    "gan-r1-0": ("so too of the plain GAN?", {"algorithm": "gan", "answers": 1, "latent_step": 0.0, "r1": 0.0}),
    "spectral-norm": ("does spectral normalisation help?", {"spectral_norm": True}),
    "gradient-penalty": ("does the gradient penalty, in place of R1?", {"r1": 0.0, "gradient_penalty": 10.0}),
    "slope-0": ("must critics be taught the slope of the return?", CRITICS_ALONE | {"slope_weight": 0.0}),
    "gamma-0.95": ("do later returns help or harm?", CRITICS_ALONE | {"gamma": 0.95}),
    "diversity-0": ("must z be kept uncorrelated?", {"diversity_weight": 0.0}),
    "exploration-0.1": ("is noise of 0.1 in z enough?", {"exploration": 0.1}),
    "replay-0": ("do old fakes help?", {"replay_fraction": 0.0}),
    "original": ("how do the published hyperparameters fare?", PRESETS["original"]),
}


def words(flags: dict) -> list[str]:
    """Parameters of Config as words of its command line."""
    pairs = ((f"--{name.replace('_', '-')}", value) for name, value in flags.items() if value is not False)
    return [word for flag, value in pairs for word in ([flag] if value is True else [flag, str(value)])]


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
                    raise UserError(f"train.py ended with {status} ({''.join(said)}); see {log}, mend it, and go on.")
                yield run, status == 0
    finally:
        for process in running.values():
            process.terminate()
        for process in running.values():
            process.wait()


def minutes_at(run: Path) -> dict[int, float]:
    """By step: the minutes that train.py took up to there, with grids and checkpoints, without steps made twice."""
    minutes, total, log = {}, 0.0, run / "metrics.jsonl"
    for line in log.read_text().splitlines() if log.exists() else ():  # a run may diverge before the first line
        entry = json.loads(line)
        total += entry["steps"] * entry["images"] / entry["step"] / entry["images_per_second"] / 60
        minutes[entry["step"]] = total
    return minutes


def scorer(features: Path, count: int) -> Callable[[Path], list[dict]]:
    """A function that scores a checkpoint as evaluate.py does: a dict of scores for each kind of sample.

    Up to `count` samples against as many of the images of training, whose features are taken once for all checkpoints.
    Raises UserError.
    """
    import torch

    from evaluate import compare, described, pick
    from magnet.metrics import exported_network
    from magnet.randomness import stream
    from magnet.runs import load_agents, load_checkpoint, load_states
    from magnet.sampling import Sampler, draw

    device = settle(Config()).device
    embed, _ = exported_network(features, torch.device(device))

    @functools.cache
    def real(config: Config) -> tuple:
        faces = load_states(config, None)
        order = torch.randperm(len(faces), generator=stream(0, "reference"))
        return faces, described(pick(faces, order[:count]), embed)

    def score(path: Path) -> list[dict]:
        generators, _, config = load_agents(*load_checkpoint(path), device)
        faces, reals = real(Config(device=device, **{name: getattr(config, name) for name in OF_IMAGES}))
        kinds = {"prior": None} if config.algorithm == "gan" else {"prior": None, "policy": faces}
        found = []
        for kind, states in kinds.items():
            images, _ = draw([Sampler(agent, states) for agent in generators], kind, len(reals["images"]))
            found.append({"kind": kind} | compare(described(images, embed), reals, "fd", torch.device(device)))
        return found

    return score


def curve(run: Path, score: Callable[[Path], list[dict]]) -> list[dict]:
    """The scores of a run's checkpoints but that before step 1, by checkpoint and kind of sample."""
    from magnet.checkpoint import listed

    minutes, batch = minutes_at(run), Config(**json.loads((run / "config.json").read_text())).images_per_step
    points = []
    for path in listed(run / "checkpoints"):
        if step := int(path.stem):
            place = {"step": step, "images": step * batch, "minutes": round(minutes[step], 3)}
            points += [place | scores for scores in score(path)]
    return points


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


def ablate(options: argparse.Namespace, base: dict) -> None:
    """Trains and scores what options.out lacks; `base`: parameters of all runs. Raises UserError."""
    from magnet.checkpoint import prune
    from magnet.logbook import sole_owner
    from magnet.metrics import digest

    if not options.features.is_file():
        raise UserError(f"There is no network {options.features}; make it with `python3 experiments/face_features.py`.")
    protocol = {"count": options.count, "features": f"{options.features.name} {digest(options.features)}"}
    wanted, runs = {}, {}
    for seed in options.seeds:
        for setting in options.only:
            flags = base | SETTINGS[setting][1] | {"seed": seed}
            batch = complete(flags).images_per_step
            # Not by epochs: how many images the discriminator sees in one depends on the setting.
            flags |= {"epochs": 1_000_000, "steps": -(-options.images // batch)}
            config = complete(flags)
            check(config)
            # With the defaults written out: should they change, what was measured before them does not count.
            flags = {name: value for name, value in dataclasses.asdict(config).items() if name not in NOT_OF_GAME}
            wanted[setting, seed] = {"flags": flags, "protocol": protocol}
            runs[setting, seed] = options.models_dir / f"{setting}-seed{seed}"
    options.models_dir.mkdir(parents=True, exist_ok=True)
    with sole_owner(options.models_dir):
        done = finished(options.out, wanted)
        missing = {run: key for key, run in runs.items() if key not in done}
        score = scorer(options.features, options.count)
        flags = {run: wanted[key]["flags"] for run, key in missing.items()}
        with closing(trained(flags, options.jobs)) as ended:
            for run, well in ended:
                print(f"{run.name}: {'scoring' if well else 'diverged; scoring what there is'}", flush=True)
                setting, seed = missing[run]
                result = {"setting": setting, "seed": seed, "diverged": not well, "jobs": options.jobs}
                result |= wanted[setting, seed] | {"curve": curve(run, score)}
                result["environment"] = json.loads((run / "environment.json").read_text())
                lines = options.out.read_text() if options.out.exists() else ""
                lines += json.dumps(result) + "\n"
                write_atomically(options.out, lambda file, lines=lines: file.write(lines.encode()))
                prune(run / "checkpoints", 1)  # they are large, and scored


def parse(arguments: list[str]) -> tuple[argparse.Namespace, dict]:
    """The command line: what is this program's, and the parameters of all runs. Exits with 2 on a bad word."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("--list", action="store_true", help="show the table of settings, and stop")
    parser.add_argument("--out", type=Path, default=Path("results.jsonl"), help="the lines (default %(default)s)")
    parser.add_argument("--only", nargs="+", choices=SETTINGS, default=list(SETTINGS), metavar="NAME", help="settings")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2], metavar="SEED", help="default 0 1 2")
    parser.add_argument(
        "--images", type=int, default=IMAGES, help="that each run sees, as train.py counts them (default %(default)s)"
    )
    parser.add_argument("--jobs", type=int, default=1, help="runs at a time, which share the cores (default 1)")
    parser.add_argument("--count", type=int, default=5000, help="samples that are scored (default %(default)s)")
    parser.add_argument(
        "--features", type=Path, default=ROOT / "experiments" / "face_features.pt2", metavar="NET.pt2",
        help="the network of the scores (default: the one beside this program)",
    )  # fmt: skip
    parser.add_argument("--models-dir", type=Path, default=Path("models/ablation"), help="default %(default)s")
    options, rest = parser.parse_known_args(arguments)
    given, commands = train.parse([*BASE, *rest])
    if commands.resume or commands.dry_run or OWN & given.keys():
        parser.error(f"--resume, --dry-run and {', '.join(words(dict.fromkeys(OWN, True)))} are no flags of all runs")
    for name, low in (("jobs", 1), ("count", 4), ("images", 1)):
        if getattr(options, name) < low:
            parser.error(f"--{name} is {getattr(options, name)}, but must be at least {low}")
    return options, PRESETS[commands.preset] | given


def main(arguments: list[str] | None = None) -> int:
    """The program; returns its exit status."""
    options, base = parse(sys.argv[1:] if arguments is None else arguments)
    if options.list:
        for name, (question, flags) in SETTINGS.items():
            print(f"{name:<16} {question}\n{'':<16} {' '.join(words(flags)) or '(the base alone)'}")
        return 0
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        ablate(options, base)
    except (UserError, OSError) as error:
        print(f"ablation.py: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("Stopped; the same command goes on from here.")
        return 130
    print(options.out)
    return 0


if __name__ == "__main__":
    sys.exit(main())
