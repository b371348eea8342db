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

import torch  # noqa: E402

from benchmarks import measure  # noqa: E402
from benchmarks.gpu_work import Worker, describe, in_mebibytes, resume, time_step  # noqa: E402
from magnet.config import Config, check  # noqa: E402
from magnet.support.devices import settle  # noqa: E402
from magnet.support.errors import UserError  # noqa: E402
from magnet.support.output import as_program  # noqa: E402
from magnet.support.paths import user_path  # noqa: E402

CELEBA_IMAGES = 202_599
BATCHES, PRECISIONS = (16, 64, 128), ("bf16", "fp16", "fp32")
STEPS_SHARE, TRAINING_SHARE = 0.6, 0.2  # of the minutes; the rest is for processes that begin and end
STEP_COLUMNS = (
    "| | batch | precision | CUDA graphs | images lie in | ms a step | images a second | peak memory | turns |"
)


class Setting(NamedTuple):
    """What a row of the tables measures."""

    config: Config
    in_memory: bool = False  # whether the images are kept off the GPU


def list_settings(config: Config) -> list[Setting]:
    """MAGNET at each batch, the plain GAN at the run's own; in each precision; with and without CUDA graphs.

    Then MAGNET with the images in the computer's memory, at the run's own batch and at the largest.
    """
    gpu, batches = config.device != "cpu", sorted({*BATCHES, config.batch_size})
    early = gpu and torch.cuda.get_device_capability(config.device) < (8, 0)  # there bfloat16 is emulated
    games = [{"batch_size": batch} for batch in batches] + [{"algorithm": "gan", "gamma": 0.0}]
    settings = [
        Setting(dataclasses.replace(config, **game, precision=precision, cuda_graphs=graphs))
        for game in games
        for precision in PRECISIONS[early:]
        for graphs in (("auto", "off") if gpu else (config.cuda_graphs,))
    ]
    own = [dataclasses.replace(config, batch_size=batch) for batch in sorted({config.batch_size, batches[-1]})]
    return list(dict.fromkeys([*settings, *map(Setting, own), *(Setting(one, in_memory=True) for one in own)]))


def measure_in_rounds(worker: Worker, settings: list[Setting], options) -> dict[Setting, list]:
    """What each setting's turns gave: dicts of `time_step`, or a string that says what failed and ends its turns."""
    results = {setting: [] for setting in settings}
    until = time.monotonic() + 60 * options.minutes * STEPS_SHARE
    seconds = min(measure.BLOCK_SECONDS, 6 * options.minutes)
    for turn in range(options.repeats):
        if turn and time.monotonic() > until:
            break
        for setting, turns in results.items():
            if turns and isinstance(turns[-1], str):
                continue
            try:
                check(setting.config)
                turns.append(worker(time_step, *setting, seconds, options.cpu_time))
            except UserError as error:
                turns.append(f"failed: {error}")
            print(f"turn {turn + 1} of at most {options.repeats}: {step_row(setting, turns)}", flush=True)
    return results


def step_row(setting: Setting, turns: list) -> str:
    """The row of a setting."""
    config, last = setting.config, turns[-1]
    failed = isinstance(last, str)
    recorded = config.cuda_graphs == "auto" and config.device != "cpu" if failed else last["graphs"]
    game = "MAGNET" if config.algorithm == "magnet" else "plain GAN"
    row = f"| {game} | {config.batch_size} | {config.precision} | {'yes' if recorded else 'no'} |"
    if failed:
        return f"{row} | {last} | | | {len(turns)} |"
    seconds = [turn["seconds"] for turn in turns]
    times = measure.shown(measure.spread(seconds), 1e-3)
    rate = measure.shown(measure.spread([config.batch_size / one for one in seconds]), digits=0)
    return f"{row} {last['place']} | {times} | {rate} | {in_mebibytes(last['peak'])} | {len(turns)} |"


def table(columns: str, rows: list[str]) -> str:
    """In Markdown; columns: the first line, as it stands."""
    return "\n".join([columns, "| --- " * (columns.count("|") - 1) + "|", *rows])


def machine_section(machine: dict | str, config: Config) -> str:
    """The result of `describe`, a string if CUDA failed at once; and what the driver's own program says."""
    facts = machine if isinstance(machine, dict) else {"device": machine}
    if config.device != "cpu":
        query = ["nvidia-smi", "--query-gpu=name,driver_version,power.limit,pcie.link.width.max", "--format=csv"]
        try:
            head, rows = subprocess.run(query, capture_output=True, text=True, timeout=60).stdout.split("\n", 1)
            facts = facts | {head: "; ".join(rows.split("\n")).strip("; ")}
        except (OSError, ValueError, subprocess.TimeoutExpired):
            facts = facts | {"driver": "nvidia-smi does not tell"}
    return table("| | |", [f"| {name} | {value} |" for name, value in facts.items()])


def steps_section(config: Config, results: dict[Setting, list]) -> str:
    """The time of a step of each setting whose images lie where the program puts them."""
    rows = [step_row(one, turns) for one, turns in results.items() if not one.in_memory]
    r1 = f"with R1 in one of {config.r1_every} steps" if config.r1 else "without R1"
    about = f"{config.image_size}x{config.image_size}, width {config.width}, {r1}. A step is the mean over "
    return f"{about}{measure.period(config)} steps, after which all repeats.\n\n" + table(STEP_COLUMNS, rows)


def data_section(config: Config, machine: dict | str, results: dict[Setting, list]) -> str:
    """Where images lie, by the machine as `describe` gives it, and what that costs."""
    celeba = in_mebibytes(CELEBA_IMAGES * 3 * config.image_size**2)
    free = machine.get("free", "no GPU") if isinstance(machine, dict) else "not known"
    rows = [step_row(one, turns) for one, turns in results.items() if one._replace(in_memory=True) in results]
    return (
        f"Images go to the GPU if they take at most half of what is free there, at the start {free}. "
        f"CelebA at {config.image_size}x{config.image_size} takes {celeba}.\n\n" + table(STEP_COLUMNS, rows)
    )


def training_section(words: list[str], seconds_a_step: float | None, minutes: float, picture: Path) -> str:
    """What a training by train.py of about `minutes` logged; its last grid goes to `picture`."""
    if seconds_a_step is None:
        return "Not tried: the run's own setting failed above."
    steps = max(2, round(60 * minutes / seconds_a_step))
    with tempfile.TemporaryDirectory() as models:
        command = [sys.executable, str(ROOT / "train.py"), *words, "--steps", str(steps), "--epochs", "1000000"]
        command += ["--sample-every", str(max(1, steps // 4)), "--checkpoint-every", "1000000", "--models-dir", models]
        start = time.monotonic()
        done = subprocess.run([*command, "--name", "run"], capture_output=True, text=True, encoding="utf-8")
        seconds = time.monotonic() - start
        if done.returncode:
            return f"failed with exit status {done.returncode}: {(done.stderr.strip().splitlines() or [''])[-1]}"
        run = Path(models, "run")
        log = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
        shutil.copyfile(run / "samples" / f"{steps:06d}.png", picture)
    rate = measure.shown(measure.spread([line["images_per_second"] for line in log[1:] or log]), digits=0)
    return (
        f"`train.py {shlex.join(words)} --steps {steps}` took {seconds:.0f} seconds with its start. "
        f"Images a second in its log: {rate}.\n\n![its last grid]({picture.name})\n\nThe log's last line:\n\n"
        f"```\n{json.dumps(log[-1])}\n```"
    )


def resume_section(worker: Worker, config: Config, steps: int) -> str:
    """Whether a run that goes on from a checkpoint is the same, with and without deterministic kernels."""
    rows = []
    for deterministic in (False, True):
        if deterministic:
            worker.end()  # what makes kernels deterministic must be set before CUDA's libraries begin
        result = worker(resume, dataclasses.replace(config, deterministic=deterministic), steps)
        if isinstance(result, dict):
            result = " | ".join(f"differ by {one:.1e}" if one else "equal bit for bit" for one in result.values())
        rows.append(f"| {'yes' if deterministic else 'no'} | {result} |")
    return (
        f"{steps} steps, a checkpoint, {steps} steps in a new trainer, against {2 * steps} steps in one go: the "
        "largest relative difference of a network's weights. Beside it that of the same steps made twice.\n\n"
        + table("| deterministic | resumed | made twice |", rows)
    )


def report(out: Path, options, words: list[str], config: Config, command: str) -> None:
    """Measures all, and writes each part as soon as it is there. Raises UserError if `out` cannot be written."""
    start, parts = time.monotonic(), []

    def write(title: str, text: str) -> None:
        parts.append(f"{title}\n\n{text}\n")
        try:
            out.write_text("\n".join(parts), encoding="utf-8", errors="backslashreplace")
        except OSError as error:
            raise UserError(f"cannot write {out} ({error.strerror}): name another place with --out.") from error
        print(f"{out}: {title}", flush=True)

    write(f"# MAGNET on a {'CPU' if config.device == 'cpu' else 'GPU'}", f"By `{command}`.")  # fails at once, if at all
    with Worker(int(config.threads)) as worker:
        machine = worker(describe, config.device)
        write("## Machine", machine_section(machine, config))
        results = measure_in_rounds(worker, list_settings(config), options)
        write("## Steps", steps_section(config, results))
        write("## Where the images lie", data_section(config, machine, results))
        write("## Resuming", resume_section(worker, config, max(3, min(20, int(20 * options.minutes)))))
    own = [turn["seconds"] for turn in results[Setting(config)] if isinstance(turn, dict)]
    a_step = measure.spread(own)["median"] if own else None
    write("## Training", training_section(words, a_step, options.minutes * TRAINING_SHARE, out.with_suffix(".png")))
    write("## Sending it", (
        f"`{command}` took {(time.monotonic() - start) / 60:.1f} minutes. Please send its report: a new issue in the "
        'repository of this program, by its form "GPU report"; paste this file, and drag the picture into it.'
    ))  # fmt: skip


@as_program
def main(arguments: list[str] | None = None) -> int:
    """The program; returns its exit status."""
    arguments = sys.argv[1:] if arguments is None else arguments
    parser = measure.new_parser(__doc__, repeats=5)
    parser.add_argument("--minutes", type=float, default=10.0, help="about how long it all may take (default 10)")
    parser.add_argument(
        "--out", type=user_path, default=Path("gpu-report.md"), help="the report (default gpu-report.md)"
    )
    try:
        options, words, asked = measure.parse(parser, ["--data", "synthetic", *arguments])
        config = settle(asked)
        if config.device == "cpu" and asked.device == "auto":
            raise UserError(
                "PyTorch sees no GPU: does `nvidia-smi` show one, and is PyTorch the build for GPUs "
                "(`pip3 install --force-reinstall torch`)? `--device cpu` measures the CPU."
            )
        if config.points:
            raise UserError(f"--data {config.data} has no images, which the report is about: name others or none.")
        if not 0 < options.minutes < 1e6:
            raise UserError(f"--minutes is {options.minutes:g}, but must be above 0 and below a million.")
        report(options.out, options, words, config, shlex.join(["python3", "benchmarks/gpu.py", *arguments]))
    except UserError as error:
        print(f"gpu.py: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
