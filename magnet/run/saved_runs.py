"""What the programs that look at a trained run read from it: its checkpoint, its agents, the images it learned from."""

import dataclasses
import io
from contextlib import redirect_stderr, suppress
from pathlib import Path

import torch

from magnet.agents.discriminator import DiscriminatorAgent
from magnet.agents.generator import GeneratorAgent
from magnet.config import CACHE, Config
from magnet.data.image_dataset import ImageDataset, load_faces
from magnet.maddpg import new_agents
from magnet.run import checkpoint
from magnet.run.checkpoint_validation import networks_fault, refuse, restored_config
from magnet.run.exported import STATES, take_over
from magnet.support.devices import settle
from magnet.support.errors import UserError


def load_checkpoint(run: Path) -> tuple[Path, dict]:
    """The last checkpoint of a run folder, or a file of a checkpoint or of exported weights, and its contents.

    Raises UserError.
    """
    if run.is_file():
        return run, checkpoint.load(run, (checkpoint.FORMAT, checkpoint.WEIGHTS))
    if (run / "checkpoints").is_dir():
        return checkpoint.latest(run / "checkpoints")
    raise UserError(f"There is no run or checkpoint {run}; `ls models` shows the runs.")


def load_agents(path: Path, saved: dict, device: str) -> tuple[list[GeneratorAgent], list[DiscriminatorAgent], Config]:
    """The agents of the checkpoint `saved`, read from `path`, with its config. Raises UserError."""
    config, exported = restored_config(path, saved["config"]), saved["format"] == checkpoint.WEIGHTS
    refuse(path, networks_fault(saved["trainer"], config, STATES if exported else 0))
    config = settle(dataclasses.replace(config, device=device))
    generators, discriminators = new_agents(config, torch.device(config.device))
    if exported:
        take_over([*generators, *discriminators], saved["trainer"])
        return generators, discriminators, config
    for agent in (*generators, *discriminators):
        agent.load_networks(saved["trainer"]["agents"][agent.name])
    return generators, discriminators, config


def only_pictures(run: Path, config: Config) -> None:
    """Raises UserError if `run` makes points, which are no pictures."""
    if config.points:
        raise UserError(
            f"{run} makes points, not pictures: see the run's samples/, and in its metrics.jsonl the modes that "
            f"`python3 train.py --data {config.data} --evaluate-every 500` counts."
        )


def load_states(config: Config, data: str | None, held_out: bool = False, learned: str = "") -> ImageDataset:
    """The faces of a run's states, which it learned from, or those held out. Raises UserError if they are gone.

    data: other images, all of which are taken; those of the run, if they lie there now, are told by the fingerprint
    `learned` of the images that it learned from, and by held_out: of these a share is held out.
    """
    if not (data or config.data):
        raise UserError("Exported weights hold no images: name yours with --data FOLDER.")

    def load(hold_out: float) -> ImageDataset:
        pixels = load_faces(
            data or config.data, config.image_size, cache_dir=CACHE, skip_bad_images=config.skip_bad_images,
            hold_out=hold_out, held_out=held_out,
        )  # fmt: skip
        return ImageDataset(pixels, config.device)

    if held_out or not config.hold_out or data in (None, config.data):
        return load(config.hold_out)
    if learned:
        with suppress(UserError), redirect_stderr(io.StringIO()):  # of a few images none may be held out
            if (faces := load(config.hold_out)).fingerprint == learned:
                return faces
    return load(0.0)
