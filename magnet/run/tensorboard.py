"""What TensorBoard shows of a run besides its scalars and grids: custom charts, and a line in the HPARAMS tab."""

import dataclasses
import os
from pathlib import Path

from torch.utils.tensorboard import SummaryWriter
from torch.utils.tensorboard.summary import hparams

from magnet.config import agent_names
from magnet.support.errors import one_line

HPARAMS = ".hparams"  # ending of the file of events that holds this line


def open_writer(run: Path, **options) -> SummaryWriter:
    """A SummaryWriter on the folder `run`. TensorBoard takes UTF-8 names alone; on Linux others get another name."""
    name = str(run)
    if os.fsencode(name) != name.encode(errors="replace"):
        run.mkdir(parents=True, exist_ok=True)
        name = f"/proc/self/fd/{os.open(run, os.O_RDONLY)}"  # open as long as the program: the writer opens files later
    return SummaryWriter(name, **options)


def list_tags(config) -> tuple[list[str], list[str]]:
    """The tags of all agents' rewards, and those of the discriminators' accuracies."""
    generators, discriminators = agent_names(config)
    accuracies = [f"{name}/accuracy_{images}" for name in discriminators for images in ("real", "fake")]
    return [f"{name}/reward" for name in (*generators, *discriminators)], accuracies


def lay_out_charts(config) -> dict[str, dict[str, list]]:
    """The layout for SummaryWriter.add_custom_scalars: a chart of all rewards, one of accuracies, one of scores.

    Its tags are regular expressions.
    """
    rewards, accuracies = list_tags(config)
    scores = ["kl", "modes", "high_quality"] if config.points else [r"swd(_\d+)?"]
    charts = {"rewards": rewards, "accuracies": accuracies, "scores": scores if config.evaluate_every else []}
    return {"MAGNET": {title: ["Multiline", [f"^{tag}$" for tag in tags]] for title, tags in charts.items() if tags}}


def write_hparams(run: Path, config, step: int, best: dict) -> None:
    """Writes the run's line in the HPARAMS tab: all parameters, the last rewards, accuracies and score, the best score.

    step: where the run ended. best: Evaluation's. Columns of metrics name scalars of the run. TensorBoard takes the
    first line in a run folder, so a run that goes on replaces the file of its earlier line.
    """
    score = next(iter(best))  # "swd" or "kl"
    rewards, accuracies = list_tags(config)
    columns = [*rewards, *accuracies, score, f"best/{score}", "images_per_second"]
    earlier = list(run.glob(f"*{HPARAMS}"))
    parameters = {
        key: one_line(value) if isinstance(value, str) else value for key, value in dataclasses.asdict(config).items()
    }
    with open_writer(run, filename_suffix=HPARAMS) as board:
        for summary in hparams(parameters, dict.fromkeys(columns)):
            board.file_writer.add_summary(summary)  # at no step, which a run that goes on might take back
        if best["step"]:
            board.add_scalar(f"best/{score}", best[score], step)
    for path in earlier:
        path.unlink()
