#!/usr/bin/env python3
"""Trains a named table of settings, over seeds, and scores every checkpoint: what is each part of the game worth?

    python3 experiments/ablation.py --list
    python3 experiments/ablation.py --out results.jsonl --seeds 0 1 2
    python3 experiments/ablation.py --out results.jsonl --only default gan --images 1200000 --nz 32

All further words are train.py's flags for every run: the base, which a setting changes. All runs see equally many
images. A line of the output is a run: its flags, its scores by checkpoint, the minutes that its steps took, and the
machine. Stop it at any time: the same command goes on with the run in progress and leaves finished lines alone. The
last checkpoint of a finished run stays. On many cores start several commands, with other --seeds, --out, --models-dir.
Exit status: 0 done, 2 a mistake in the settings or a run that failed, said in one sentence, 130 stopped.
"""

import argparse
import json
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

import torch  # noqa: E402

from magnet.config import PRESETS, Config, check, complete  # noqa: E402
from magnet.evaluation import comparison, drawing, feature_networks, sampling  # noqa: E402
from magnet.run import checkpoint, command_line, logger, saved_runs, session  # noqa: E402
from magnet.support import atomic_files, devices, random_streams  # noqa: E402
from magnet.support.errors import UserError  # noqa: E402
from magnet.support.output import as_program  # noqa: E402
from magnet.support.paths import user_path  # noqa: E402

FACE_FEATURES = ROOT / "experiments" / "face_features.pt2"
BASE = ["--preset", "cpu", "--precision", "fp32", "--checkpoint-every", "5"]
OF_RUN = {"seed", "epochs", "steps", "keep", "name", "models_dir"}  # what a run gets from the table
IMAGES = 598_400  # 50 epochs of the base over 9,000 faces
GAN = {"algorithm": "gan"}

# name: the question, and the flags that differ from the base. Adam ignores the scale of a loss. So in
# "no-gradient-to-ga" G_a's gradient from its critic vanishes beside that of the diversity.
SETTINGS = {
    "default": ("what the others are compared with", {}),
    "no-critics": ("do actors learn as well by critics as by the reward itself?", {"critics": "none"}),
    "no-generator-critic": ("does the generator agent alone?", {"critics": "discriminator"}),
    "no-discriminator-critic": ("does the discriminator agent alone?", {"critics": "generator"}),
    "no-gradient-to-ga": ("does G_a learn by its critic? (here it cannot)", {"diversity_weight": 1e6}),
    "gan": ("is the game worth its price?", GAN),
    "gan-plain": ("and beside a GAN without R1 and replay?", GAN | {"r1": 0.0, "replay_fraction": 0.0}),
    "r1-0": ("must D_a's gradients be penalised?", {"r1": 0.0}),
    "r1-every-1": ("is R1 in every step better than in every eighth?", {"r1_every": 1}),
    "gamma-0.95": ("do later rewards help or harm?", {"gamma": 0.95}),
    "diversity-0": ("must z be kept uncorrelated?", {"diversity_weight": 0.0}),
    "epsilon-0.1": ("do so many random actions help?", {"epsilon": 0.1}),
    "replay-0": ("do replayed images help?", {"replay_fraction": 0.0}),
    "replay-0.9": ("and if nearly all are replayed?", {"replay_fraction": 0.9}),
    "tau-0.01": ("may the targets follow faster?", {"tau": 0.01}),
    "batch-64": ("do larger batches help?", {"batch_size": 64}),
    "spectral-norm": ("does spectral normalisation help?", {"spectral_norm": True}),
    "gradient-penalty": ("does the gradient penalty, in place of R1?", {"r1": 0.0, "gradient_penalty": 10.0}),
    "original": ("how do the published hyperparameters fare?", PRESETS["original"]),
}


def words(flags: dict) -> list[str]:
    """Parameters of Config as words of its command line."""
    pairs = ((f"--{name.replace('_', '-')}", value) for name, value in flags.items() if value is not False)
    return [word for flag, value in pairs for word in ([flag] if value is True else [flag, str(value)])]


def train(run: Path, flags: dict) -> bool:
    """Trains by train.py in the folder `run`, from its last checkpoint if it has one. Its output goes to run.log.

    Returns whether it ended well: a run that diverged did not. Raises UserError if train.py fails otherwise.
    """
    if any(run.glob("checkpoints/*.pt")):
        command = ["--resume", str(run)]
    else:
        shutil.rmtree(run, ignore_errors=True)  # killed before the first step
        command = ["--models-dir", str(run.parent), "--name", run.name]
    command = [sys.executable, str(ROOT / "train.py"), *command, *words(flags), "--keep", "1000000"]
    log = run.with_name(f"{run.name}.log")
    with open(log, "a") as file:
        # A session of its own: Ctrl-C reaches it through this program alone. A second signal would end it unsaved.
        process = subprocess.Popen(command, stdout=file, stderr=file, stdin=subprocess.DEVNULL, start_new_session=True)
    try:
        status = process.wait()
    finally:
        process.terminate()  # it saves; nothing happens if it has ended
        process.wait()
    if status not in (0, 3):
        reason = "".join(log.read_text(errors="replace").strip().splitlines()[-1:])
        raise UserError(f"train.py ended with {status} ({reason}); see {log}, fix it, and go on.")
    return status == 0


def minutes_at(run: Path) -> dict[int, float]:
    """By step: the minutes that the steps took up to there, without grids, scores and checkpoints."""
    minutes, total, log = {}, 0.0, run / "metrics.jsonl"
    for line in log.read_text().splitlines() if log.exists() else ():  # a run may diverge before the first line
        entry = json.loads(line)
        total += entry["steps"] * entry["images"] / entry["step"] / entry["images_per_second"] / 60
        minutes[entry["step"]] = total
    return minutes


def read_finished(out: Path, wanted: dict[tuple, dict]) -> set[tuple]:
    """(setting, seed) of the lines of `out`. Raises UserError if one of `wanted` was measured otherwise."""
    lines = read_lines(out, "setting", "seed", "flags", "protocol") if out.exists() else []
    done = {(line["setting"], line["seed"]): line for line in lines}
    for key in wanted.keys() & done:
        if changed := [name for name, value in wanted[key].items() if done[key][name] != value]:
            raise UserError(
                f"{out} holds {key[0]} of seed {key[1]} with other {', '.join(changed)}; ask for the same, or name "
                "another --out and --models-dir."
            )
    return set(done)


def new_scorer(config: Config, features: Path, count: int) -> tuple[str, Callable[[Path], list[dict]]]:
    """The name of the network `features`; a function that scores a checkpoint, a dict for each kind of sample.

    It compares, as evaluate.py does, `count` samples with as many of the images of `config`. Raises UserError.
    """
    device = torch.device(config.device)
    embed, name = feature_networks.load_exported_network(features, device)
    faces = saved_runs.load_states(config, None)
    order = torch.randperm(len(faces), generator=random_streams.stream(0, "reference"))[:count]
    reals = comparison.collect_set(comparison.pick(faces, order), len(order), embed)

    def score(path: Path) -> list[dict]:
        generators, _, game = saved_runs.load_agents(*saved_runs.load_checkpoint(path), config.device)
        kinds, scores = {"prior": None} | ({} if game.algorithm == "gan" else {"policy": faces}), []
        for kind, states in kinds.items():
            parts = drawing.draw_pieces([sampling.Sampler(agent, states) for agent in generators], kind, len(order))
            fakes = comparison.collect_set((images for images, _ in parts), len(order), embed)
            scores.append({"kind": kind} | comparison.compare(fakes, reals, "fd", device))
        return scores

    return name, score


def curve(run: Path, score: Callable[[Path], list[dict]]) -> list[dict]:
    """The scores of a run's checkpoints after step 0, by checkpoint and kind of sample."""
    minutes, batch = minutes_at(run), session.read_parameters(run / "config.json")["batch_size"]
    points = []
    for path in checkpoint.list_checkpoints(run / "checkpoints"):
        if step := int(path.stem):
            place = {"step": step, "images": step * batch, "minutes": round(minutes[step], 3)}
            points += [place | scores for scores in score(path)]
    return points


def ablate(options: argparse.Namespace, base: dict) -> None:
    """Trains and scores what options.out lacks; `base`: parameters of all runs. Raises UserError."""
    name, score = new_scorer(devices.settle(complete(base)), options.features, options.count)
    protocol, wanted = {"count": options.count, "features": name}, {}
    for seed in options.seeds:
        for setting in options.only:
            flags = base | SETTINGS[setting][1] | {"seed": seed, "epochs": 1_000_000}  # the steps end a run
            config = complete(flags | {"steps": -(-options.images // complete(flags).batch_size)})
            check(config)
            # The defaults are written out: if they change, a line that was measured with the old ones does not count.
            flags = {key: value for key, value in vars(config).items() if key not in ("keep", "name", "models_dir")}
            wanted[setting, seed] = {"flags": flags, "protocol": protocol}
    options.models_dir.mkdir(parents=True, exist_ok=True)
    with logger.lock_run(options.models_dir):
        done = read_finished(options.out, wanted)
        for (setting, seed), line in wanted.items():
            if (setting, seed) in done:
                continue
            run = options.models_dir / f"{setting}-seed{seed}"
            print(f"{run.name}: training", flush=True)
            ended_well = train(run, line["flags"])
            print(f"{run.name}: {'scoring' if ended_well else 'diverged; scoring what there is'}", flush=True)
            line = {"setting": setting, "seed": seed, "diverged": not ended_well} | line | {"curve": curve(run, score)}
            line["environment"] = json.loads((run / "environment.json").read_text())
            append_line(options.out, line)
            checkpoint.prune(run / "checkpoints", 1)  # they are large, and scored


# rewards.py and peers.py take these too.


def read_lines(path: Path, *keys: str) -> list[dict]:
    """The lines of a file, which all have `keys`. Raises UserError if it holds others."""
    try:
        lines = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
        if any(key not in line for line in lines for key in keys):
            raise ValueError(f"a line lacks one of {', '.join(keys)}")
    except (ValueError, TypeError) as error:
        raise UserError(f"{path} holds other lines than this program's ({error}); name another file.") from error
    return lines


def append_line(out: Path, line: dict) -> None:
    """Adds a line to `out`, whole or not at all."""
    before = out.read_bytes() if out.exists() else b""
    atomic_files.write_atomically(out, lambda file: file.write(before + json.dumps(line).encode() + b"\n"))


def new_parser(about: str, settings: dict, out: str, seeds: list[int]) -> argparse.ArgumentParser:
    """--out, --only, --seeds and --count."""
    kind = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=about, formatter_class=kind, allow_abbrev=False)
    add, every = parser.add_argument, list(settings)
    add("--out", type=user_path, default=Path(out), help="the lines (default %(default)s)")
    add("--only", nargs="+", choices=every, default=every, metavar="NAME", help=f"some of {', '.join(every)}")
    add("--seeds", nargs="+", type=int, default=seeds, metavar="SEED", help=f"default {' '.join(map(str, seeds))}")
    add("--count", type=int, default=5000, help="samples that are scored (default %(default)s)")
    return parser


def parse_base(parser: argparse.ArgumentParser, arguments: list[str], base: list[str], **lowest: int) -> tuple:
    """The program's options, and the parameters of all runs: `base` and the other words. Exits with 2 on a bad word.

    lowest: of some options the lowest value.
    """
    options, rest = parser.parse_known_args(arguments)
    for name, low in lowest.items():
        if getattr(options, name) < low:
            parser.error(f"--{name} is {getattr(options, name)}, but must be at least {low}")
    given, commands = command_line.parse([*base, *rest])
    if commands.resume or commands.config or commands.dry_run or OF_RUN & given.keys():
        flags = ", ".join(words(dict.fromkeys(sorted(OF_RUN), True)))
        parser.error(f"--resume, --config, --dry-run and {flags} are no flags of all runs")
    return options, PRESETS[commands.preset] | given


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


def parse(arguments: list[str]) -> tuple[argparse.Namespace, dict]:
    """The command line: what is this program's, and the parameters of all runs. Exits with 2 on a bad word."""
    parser = new_parser(__doc__, SETTINGS, "results.jsonl", [0, 1, 2])
    add = parser.add_argument
    add("--list", action="store_true", help="show the table of settings, and stop")
    add("--images", type=int, default=IMAGES, help="that each run sees, as train.py counts (default %(default)s)")
    add("--features", type=user_path, default=FACE_FEATURES, metavar="NET.pt2", help="network of the scores")
    add("--models-dir", type=user_path, default=Path("models/ablation"), help="default %(default)s")
    return parse_base(parser, arguments, BASE, count=4, images=1)


@as_program
def main(arguments: list[str] | None = None) -> int:
    """The program; returns its exit status."""
    options, base = parse(sys.argv[1:] if arguments is None else arguments)
    if options.list:
        for name, (question, flags) in SETTINGS.items():
            print(f"{name:<16} {question}\n{'':<16} {' '.join(words(flags)) or '(the base alone)'}")
        return 0
    return finish("ablation.py", lambda: ablate(options, base), options.out)


if __name__ == "__main__":
    sys.exit(main())
