"""What TensorBoard shows of a run besides its scalars and grids: custom charts, and a line in the HPARAMS tab."""

import dataclasses
import os
from pathlib import Path

from torch.utils.tensorboard import SummaryWriter
from torch.utils.tensorboard.summary import hparams

from magnet.config import agent_names
from magnet.support.errors import one_line

HPARAMS = ".hparams"  # ending of the file of events that holds this line


def new_writer(run: Path, **options) -> SummaryWriter:
    """A SummaryWriter on the folder `run`. TensorBoard takes names in UTF-8 alone: others get another one, on Linux."""
    name = str(run)
    if os.fsencode(name) != name.encode(errors="replace"):
        run.mkdir(parents=True, exist_ok=True)
        name = f"/proc/self/fd/{os.open(run, os.O_RDONLY)}"  # open as long as the program: the writer opens files later
    return SummaryWriter(name, **options)


def charts(config) -> dict[str, dict[str, list]]:
    """The layout for SummaryWriter.add_custom_scalars: one chart for all rewards, accuracies and scores each.

    Tags are regular expressions.
    """
    generators, discriminators = agent_names(config)
    accuracies = [f"{name}/accuracy_{kind}" for name in discriminators for kind in ("real", "fake")]
    scores = ["kl", "modes", "high_quality"] if config.points else [r"swd(_\d+)?"]
    tags = {
        "rewards": [f"{name}/reward" for name in (*generators, *discriminators)],
        "accuracies": accuracies,
        "scores": scores if config.evaluate_every else [],
    }
    return {"MAGNET": {title: ["Multiline", [f"^{tag}$" for tag in part]] for title, part in tags.items() if part}}


def write_hparams(run: Path, config, step: int, best: dict) -> None:
    """The run's line in the HPARAMS tab: all parameters, the last rewards and accuracies, the last and the best score.

    step: where the run ended. best: of Evaluation. The columns of the metrics name scalars of the run. TensorBoard
    takes the first such line of a run folder, so a run that goes on replaces the file of its earlier line.
    """
    generators, discriminators = agent_names(config)
    score = next(iter(best))  # "swd" or "kl"
    columns = [f"{name}/reward" for name in (*generators, *discriminators)]
    columns += [f"{name}/accuracy_{kind}" for name in discriminators for kind in ("real", "fake")]
    columns += [score, f"best/{score}", "images_per_second"]
    earlier = list(run.glob(f"*{HPARAMS}"))
    parameters = {
        key: one_line(value) if isinstance(value, str) else value for key, value in dataclasses.asdict(config).items()
    }
    with new_writer(run, filename_suffix=HPARAMS) as board:
        for summary in hparams(parameters, dict.fromkeys(columns)):
            board.file_writer.add_summary(summary)  # at no step, which a run that goes on might take back
        if best["step"]:
            board.add_scalar(f"best/{score}", best[score], step)
    for path in earlier:
        path.unlink()
