#!/usr/bin/env python3
"""Measures MAGNET on a GPU in about 10 minutes, and writes a report to be sent: gpu-report.md, and a grid beside it.

    python3 benchmarks/gpu.py
    python3 benchmarks/gpu.py --minutes 30 --out long.md --image-size 128

All further words are train.py's flags; --data is `synthetic` unless it is named. The report has the machine; the time
of a step and its memory by batch, precision and CUDA graphs, of MAGNET and of the plain GAN; the same with the images
on the card and in the computer's memory; a training by train.py; and whether a run that goes on from a checkpoint is
the same. Settings take turns: medians and, in brackets, the lowest and the highest. What fails is a row that says so.
`--device cpu` measures the CPU, which takes longer: add `--preset cpu`, or a smaller --image-size and --width.
Exit status: 0 done, 2 a mistake in the settings, said in one sentence.
"""

import dataclasses
import json
import shlex
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from benchmarks.against import CELEBA_IMAGES  # noqa: E402
from benchmarks.options import new_parser, parse  # noqa: E402
from magnet.config import PRESETS, Config, check, complete  # noqa: E402
from magnet.run import command_line  # noqa: E402
from magnet.support.errors import UserError  # noqa: E402
from magnet.support.output import as_program  # noqa: E402
from magnet.support.paths import user_path  # noqa: E402

# What imports torch is imported where it is needed: --help is immediate.

BATCHES, PRECISIONS = (16, 64, 128), ("bf16", "fp16", "fp32")
STEPS_SHARE, TRAINING_SHARE = 0.6, 0.2  # of the minutes; the rest is for what begins and ends processes
STEP_COLUMNS = (
    "| | batch | precision | CUDA graphs | images lie in | ms a step | images a second | peak memory | turns |"
)


class Setting(NamedTuple):
    """What a row of the tables measures."""

    config: Config
    in_memory: bool = False  # whether the images are kept off the GPU


def settings(config: Config) -> list[Setting]:
    """MAGNET at each batch, the plain GAN at the run's own; in each precision; with and without CUDA graphs.

    Then MAGNET with the images in the computer's memory, at the run's own batch and at the largest.
    """
    import torch

    gpu, batches = config.device != "cpu", sorted({*BATCHES, config.batch_size})
    early = gpu and torch.cuda.get_device_capability(config.device) < (8, 0)  # there bfloat16 is emulated
    games = [{"batch_size": batch} for batch in batches] + [{"algorithm": "gan", "gamma": 0.0}]
    found = [
        Setting(dataclasses.replace(config, **game, precision=precision, cuda_graphs=graphs))
        for game in games
        for precision in PRECISIONS[early:]
        for graphs in (("auto", "off") if gpu else (config.cuda_graphs,))
    ]
    own = [dataclasses.replace(config, batch_size=batch) for batch in sorted({config.batch_size, batches[-1]})]
    return list(dict.fromkeys([*found, *map(Setting, own), *(Setting(one, in_memory=True) for one in own)]))


def in_rounds(worker, wanted: list[Setting], options) -> dict[Setting, list]:
    """What each setting's turns gave: dicts of `time_step`, or strings that say what failed and end its turns."""
    from benchmarks.gpu_work import time_step
    from benchmarks.measure import BLOCK_SECONDS

    found = {setting: [] for setting in wanted}
    until, seconds = time.monotonic() + 60 * options.minutes * STEPS_SHARE, min(BLOCK_SECONDS, 6 * options.minutes)
    for turn in range(options.repeats):
        if turn and time.monotonic() > until:
            break
        for setting, turns in found.items():
            if turns and isinstance(turns[-1], str):
                continue
            try:
                check(setting.config)
                turns.append(worker(time_step, *setting, seconds, options.cpu_time))
            except UserError as error:
                turns.append(f"failed: {error}")
            print(f"turn {turn + 1} of at most {options.repeats}: {step_row(setting, turns)}", flush=True)
    return found


def step_row(setting: Setting, turns: list) -> str:
    """The row of a setting."""
    from benchmarks.measure import in_mebibytes, shown, spread

    config, last = setting.config, turns[-1]
    recorded = config.cuda_graphs == "auto" and config.device != "cpu" if isinstance(last, str) else last["graphs"]
    graphs = "yes" if recorded else "no"
    game = "MAGNET" if config.algorithm == "magnet" else "plain GAN"
    what = f"| {game} | {config.batch_size} | {config.precision} | {graphs} |"
    if isinstance(last, str):
        return f"{what} | {last} | | | {len(turns)} |"
    seconds = [turn["seconds"] for turn in turns]
    rate = shown(spread([config.batch_size / one for one in seconds]), digits=0)
    peak = in_mebibytes(last["peak"])
    return f"{what} {last['place']} | {shown(spread(seconds), 1e-3)} | {rate} | {peak} | {len(turns)} |"


def table(columns: str, rows: list[str]) -> str:
    """In Markdown; columns: the first line, as it stands."""
    return "\n".join([columns, "| --- " * (columns.count("|") - 1) + "|", *rows])


def machine_section(machine: dict | str, config: Config) -> str:
    """Of `describe`, and what the driver's own program says; a string if CUDA failed at once."""
    facts = machine if isinstance(machine, dict) else {"device": machine}
    if config.device != "cpu":
        asked = ["nvidia-smi", "--query-gpu=name,driver_version,power.limit,pcie.link.width.max", "--format=csv"]
        try:
            told = subprocess.run(asked, capture_output=True, text=True, timeout=60).stdout.split("\n", 1)
            facts = facts | {told[0]: "; ".join(told[1].split("\n")).strip("; ")}
        except (OSError, IndexError, subprocess.TimeoutExpired):
            facts = facts | {"driver": "nvidia-smi does not tell"}
    return table("| | |", [f"| {name} | {value} |" for name, value in facts.items()])


def data_section(config: Config, machine: dict | str, measured: dict[Setting, list]) -> str:
    """Where images lie, by the machine as `describe` gives it, and what that costs."""
    from benchmarks.measure import in_mebibytes

    celeba = in_mebibytes(CELEBA_IMAGES * 3 * config.image_size**2)
    free = machine.get("free") if isinstance(machine, dict) else "not known"
    compared = [one for one in measured if one._replace(in_memory=True) in measured]
    rows = [step_row(one, measured[one]) for one in compared]
    return (
        f"Images go to the GPU if they take at most half of what is free there, at the start {free or 'no GPU'}. "
        f"CelebA at {config.image_size}x{config.image_size} takes {celeba}.\n\n" + table(STEP_COLUMNS, rows)
    )


def training_section(words: list[str], seconds_a_step: float | None, minutes: float, picture: Path) -> str:
    """What a training by train.py of about `minutes` logged; its last grid goes to `picture`."""
    from benchmarks.measure import shown, spread

    if seconds_a_step is None:
        return "Not tried: the run's own setting failed above."
    steps = max(2, round(60 * minutes / seconds_a_step))
    with tempfile.TemporaryDirectory() as models:
        command = [sys.executable, str(ROOT / "train.py"), *words, "--steps", str(steps), "--epochs", "1000000"]
        command += ["--sample-every", str(max(1, steps // 4)), "--checkpoint-every", "1000000", "--models-dir", models]
        start = time.monotonic()
        done = subprocess.run([*command, "--name", "run"], capture_output=True, text=True, encoding="utf-8")
        taken = time.monotonic() - start
        if done.returncode:
            return f"failed with exit status {done.returncode}: {(done.stderr.strip().splitlines() or [''])[-1]}"
        run = Path(models, "run")
        log = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
        shutil.copyfile(run / "samples" / f"{steps:06d}.png", picture)
    rate = shown(spread([line["images_per_second"] for line in log[1:] or log]), digits=0)
    return (
        f"`train.py {shlex.join(words)} --steps {steps}` took {taken:.0f} seconds with its start. "
        f"Images a second in its log: {rate}.\n\n![its last grid]({picture.name})\n\nThe log's last line:\n\n"
        f"```\n{json.dumps(log[-1])}\n```"
    )


def resume_section(worker, config: Config, steps: int) -> str:
    """Whether a run that goes on from a checkpoint is the same, with and without deterministic kernels."""
    from benchmarks.gpu_work import resume

    rows = []
    for deterministic in (False, True):
        if deterministic:
            worker.end()  # what makes kernels deterministic must stand before CUDA's libraries begin
        found = worker(resume, dataclasses.replace(config, deterministic=deterministic), steps)
        if isinstance(found, dict):
            found = " | ".join(f"differ by {one:.1e}" if one else "equal bit for bit" for one in found.values())
        rows.append(f"| {'yes' if deterministic else 'no'} | {found} |")
    return (
        f"{steps} steps, a checkpoint, {steps} steps in a new trainer, against {2 * steps} steps in one go: the "
        "largest relative difference of a network's weights. Beside it that of the same steps made twice.\n\n"
        + table("| deterministic | resumed | made twice |", rows)
    )


def report(out: Path, options, words: list[str], config: Config, command: str) -> None:
    """Measures all, and writes each part as soon as it is there. Raises UserError if `out` cannot be written."""
    from benchmarks.gpu_work import describe
    from benchmarks.measure import spread
    from benchmarks.worker import Worker

    start, parts = time.monotonic(), []

    def write(title: str, text: str) -> None:
        parts.append(f"{title}\n\n{text}\n")
        try:
            out.write_text("\n".join(parts), encoding="utf-8", errors="backslashreplace")
        except OSError as error:
            raise UserError(f"cannot write {out} ({error.strerror}): name another place with --out.") from error
        print(f"{out}: {title}", flush=True)

    write(f"# MAGNET on a {'CPU' if config.device == 'cpu' else 'GPU'}", f"By `{command}`.")  # fails at once, if at all
    with Worker(options.threads) as worker:
        machine = worker(describe, config.device)
        write("## Machine", machine_section(machine, config))
        measured = in_rounds(worker, settings(config), options)
        game = f"{config.image_size}x{config.image_size}, width {config.width}, "
        about = (
            f"{game}R1 in one of {config.r1_every} steps, over which the time of a step is the mean."
            if config.r1
            else f"{game}without R1."
        )
        rows = [step_row(one, turns) for one, turns in measured.items() if not one.in_memory]
        write("## Steps", f"{about}\n\n" + table(STEP_COLUMNS, rows))
        write("## Where the images lie", data_section(config, machine, measured))
        own = [turn["seconds"] for turn in measured[Setting(config)] if isinstance(turn, dict)]
        write("## Resuming", resume_section(worker, config, max(3, min(20, int(20 * options.minutes)))))
    a_step = spread(own)["median"] if own else None
    write("## Training", training_section(words, a_step, options.minutes * TRAINING_SHARE, out.with_suffix(".png")))
    write("## Sending it", (
        f"`{command}` took {(time.monotonic() - start) / 60:.1f} minutes. Please send its report: a new issue in the "
        'repository of this program, by its form "GPU report"; paste this file, and drag the picture into it.'
    ))  # fmt: skip


@as_program
def main(arguments: list[str] | None = None) -> int:
    """The program; returns its exit status."""
    arguments = sys.argv[1:] if arguments is None else arguments
    parser = new_parser(__doc__, repeats=5)
    parser.add_argument("--minutes", type=float, default=10.0, help="about how long it all may take (default 10)")
    parser.add_argument(
        "--out", type=user_path, default=Path("gpu-report.md"), help="the report (default gpu-report.md)"
    )
    try:
        options, words, config = parse(parser, ["--data", "synthetic", *arguments])
        given, commands = command_line.parse(words)
        if config.device == "cpu" and complete(given, PRESETS[commands.preset]).device == "auto":
            raise UserError(
                "PyTorch sees no GPU: does `nvidia-smi` show one, and is PyTorch the build for GPUs "
                "(`pip3 install --force-reinstall torch`)? `--device cpu` measures the CPU."
            )
        if config.points or config.algorithm == "gan":
            raise UserError("MAGNET is measured beside the plain GAN, on images: leave out what asks for else.")
        if not 0 < options.minutes < 1e6:
            raise UserError("--minutes must be above 0.")
        report(options.out, options, words, config, shlex.join(["python3", "benchmarks/gpu.py", *arguments]))
    except UserError as error:
        print(f"gpu.py: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
