"""A trained run from Python: `magnet.load(RUN)` gives a Model, whose methods give images as tensors."""

import os
import re
import shlex
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from magnet.data.image_dataset import read_images, to_uint8
from magnet.evaluation.drawing import draw, interpolate
from magnet.evaluation.sampling import Sampler
from magnet.run.saved_runs import load_agents, load_checkpoint, load_training_images, refuse_points
from magnet.support.errors import UserError
from magnet.support.paths import command_of


class Model:
    """The generators of a trained run, with the running averages of their weights.

    All images are uint8 tensors (N, 3, S, S) on the CPU, S = `config.image_size`. Several generators make equal shares
    of them, one after another.
    """

    def __init__(self, run: str | Path, device: str = "auto", data: str | Path | None = None):
        """run: a run folder, a checkpoint or exported weights; device: auto, cpu, cuda or cuda:N.

        data: where the images that a run folder learned from lie now, if they were moved. Raises UserError.
        """
        run = Path(run)
        path, contents = load_checkpoint(run)
        try:
            generators, _, self.config = load_agents(path, contents, device)
        except UserError as error:  # which names the flag --device
            advice = re.sub(r"--device ([\w:]+)(?=[:`])", r"device='\1'", str(error))
            raise UserError(advice.replace("--device is", "device is")) from error
        refuse_points(run, self.config)
        self._run, self._fingerprint, self._data = run, contents["faces"], None if data is None else str(data)
        self._generators, self._samplers = generators, [Sampler(agent, None) for agent in generators]

    def sample(self, count: int = 64, seed: int = 0) -> Tensor:
        """G(z) of noise z: images (count, 3, S, S), those of `sample.py --count COUNT --seed SEED`."""
        if count < 1:
            raise ValueError(f"count is {count}, but must be at least 1")
        for sampler in self._samplers:
            sampler.reseed(seed)
        return draw(self._samplers, "prior", count)[0]

    def walk(self, first: int, second: int, places: Sequence[float]) -> Tensor:
        """Images (len(places), 3, S, S) by the first generator, on the way from sample(1, first) to sample(1, second).

        places: shares in [0, 1] of the way, on the arc between the two z.
        """
        if not len(places):
            raise ValueError("places are none, but must be at least one")
        sampler, ends = self._samplers[0], []
        for seed in (first, second):
            sampler.reseed(seed)
            ends.append(sampler.draw_noise(self.config.batch_size)[:1])  # as sample draws z: a batch at a time
        z = torch.cat([interpolate(*ends, place) for place in places])
        return to_uint8(sampler.generate(z)).cpu()

    def answer(self, images: Tensor | str | Path | Sequence[str | Path]) -> Tensor:
        """G(z) of the first G_a's actions z on states: an image for each, (N, 3, S, S).

        images: uint8 (N, 3, S, S), or the names of one or several image files, which are scaled and cut as in training.
        A run folder needs the images that it learned from, for G_a's statistics; exported weights do not. Raises
        UserError, and ValueError for images of another form.
        """
        size, agent = self.config.image_size, self._generators[0]
        if self.config.algorithm == "gan":
            raise UserError("A plain GAN has no policy that answers images; load a run of MAGNET.")
        if isinstance(images, str | os.PathLike):
            images = [images]
        if not isinstance(images, Tensor):
            images = list(images)
            if not images or not all(isinstance(file, str | os.PathLike) for file in images):
                raise ValueError("images must be a tensor, the name of an image file, or a list of such names")
            images = read_images(map(Path, images), size)
        if images.dtype != torch.uint8 or images.shape[1:] != (3, size, size) or not len(images):
            raise ValueError(
                f"images are {images.dtype} {tuple(images.shape)}, but must be uint8 (N, 3, {size}, {size}), N >= 1"
            )
        if not self._samplers[0].actor:
            advice = (
                f"give their folder, `magnet.load({str(self._run)!r}, data=FOLDER)`, or load weights that "
                f"`{command_of('export')} {shlex.quote(str(self._run))} --data FOLDER --out faces.pt` wrote."
            )
            self._samplers[0] = Sampler(agent, load_training_images(self.config, self._fingerprint, self._data, advice))
        return self._samplers[0].answer(images)
