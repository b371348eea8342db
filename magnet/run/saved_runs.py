"""What the programs that look at a trained run read from it: its checkpoint, its agents, the images it learned from."""

import dataclasses
import io
import os
from contextlib import redirect_stderr, suppress
from pathlib import Path

import torch

from magnet.agents.discriminator import DiscriminatorAgent
from magnet.agents.generator import GeneratorAgent
from magnet.config import Config
from magnet.data.file_lists import BadSource
from magnet.data.image_dataset import ImageDataset, load_faces
from magnet.maddpg import new_agents
from magnet.run import checkpoint
from magnet.run.checkpoint_validation import find_networks_fault, refuse, restore_config
from magnet.run.exported import STATES, load_exported
from magnet.support.devices import settle
from magnet.support.errors import UserError
from magnet.support.paths import command_of


def load_checkpoint(run: Path) -> tuple[Path, dict]:
    """The path and contents of a run folder's last checkpoint, or of a checkpoint or exported weights.

    Raises UserError.
    """
    if os.path.isfile(run):  # False, too, for a name that no file can have
        return run, checkpoint.load(run, (checkpoint.FORMAT, checkpoint.WEIGHTS))
    if os.path.isdir(run / "checkpoints"):
        return checkpoint.load_latest(run / "checkpoints")
    raise UserError(f"There is no run or checkpoint {run}; `ls models` shows the runs.")


def load_agents(
    path: Path, contents: dict, device: str
) -> tuple[list[GeneratorAgent], list[DiscriminatorAgent], Config]:
    """The agents in `contents`, those of `path`, and their config. Raises UserError."""
    config, is_exported = restore_config(path, contents["config"]), contents["format"] == checkpoint.WEIGHTS
    refuse(path, find_networks_fault(contents["trainer"], config, STATES if is_exported else 0))
    config = settle(dataclasses.replace(config, device=device))
    generators, discriminators = new_agents(config, torch.device(config.device))
    for agent in (*generators, *discriminators):
        state = contents["trainer"]["agents"][agent.name]
        if is_exported:
            load_exported(agent, state)
        else:
            agent.load_networks(state)
    return generators, discriminators, config


def refuse_points(run: Path, config: Config) -> None:
    """Raises UserError if `run` makes points, which are no pictures."""
    if config.points:
        raise UserError(
            f"{run} makes points, not pictures: see the run's samples/, and in its metrics.jsonl the modes that "
            f"`{command_of('train')} --data {config.data} --evaluate-every 500` counts."
        )


def load_states(config: Config, data: str | None, held_out: bool = False, fingerprint: str = "") -> ImageDataset:
    """The images that a run learned from, or with `held_out` those held out of it. They are G_a's states.

    data: where other images lie; all of them are taken, none is held out. If they are the run's own, moved, its share
    is held out again. `held_out` says that they are; else their `fingerprint` must be that of the images that the run
    learned from. Raises BadSource if the images are gone.
    """
    if not (data or config.data):
        raise UserError("Exported weights hold no images: name yours with --data FOLDER.")

    def load(hold_out: float) -> ImageDataset:
        try:
            pixels = load_faces(
                data or config.data, config.image_size, skip_bad_images=config.skip_bad_images,
                hold_out=hold_out, held_out=held_out, outputs=[config.models_dir],
            )  # fmt: skip
        except BadSource as error:  # its advice is for train.py
            raise BadSource(error.cause, ": fix this, or name the images with `--data FOLDER`.") from error
        return ImageDataset(pixels, config.device)

    if held_out or not config.hold_out or data in (None, config.data):
        return load(config.hold_out)
    if fingerprint:
        with suppress(UserError), redirect_stderr(io.StringIO()):  # from a few images none can be held out
            if (faces := load(config.hold_out)).fingerprint == fingerprint:
                return faces
    return load(0.0)


def load_training_images(config: Config, fingerprint: str, data: str | None, advice: str) -> ImageDataset:
    """The images that a run learned from, for G_a's statistics: those with its `fingerprint`.

    They lie in `config.data` or in `data`. Raises UserError, which ends in `advice`, if they are in neither place.
    """
    cause = ""
    for place in (None, data) if data else (None,):
        try:
            faces = load_states(config, place, fingerprint=fingerprint)
        except BadSource as error:
            cause = cause or error.cause
            continue
        if faces.fingerprint == fingerprint:
            return faces
        cause = cause or f"{config.data} holds others"
    raise UserError(f"G_a's statistics need the images that the run learned from, but {cause}: {advice}")
