"""A trained run from Python: `magnet.load(RUN)` gives a Model, whose methods give images as tensors."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from magnet.data.image_dataset import to_uint8
from magnet.data.image_files import BadImage, load_image
from magnet.evaluation.drawing import draw, spherical
from magnet.evaluation.sampling import Sampler
from magnet.run.saved_runs import load_agents, load_checkpoint, load_states, only_pictures
from magnet.support.errors import UserError


class Model:
    """The generators of a trained run, by the running averages of their weights.

    All images are uint8 tensors (N, 3, S, S) on the CPU, S = `config.image_size`. Of several generators each makes a
    share of them, one after another.
    """

    def __init__(self, run: str | Path, device: str = "auto"):
        """run: a run folder, a checkpoint or exported weights; device: auto, cpu, cuda or cuda:N. Raises UserError."""
        run = Path(run)
        generators, _, self.config = load_agents(*load_checkpoint(run), device)
        only_pictures(run, self.config)
        self._generators, self._samplers = generators, [Sampler(agent, None) for agent in generators]

    def sample(self, count: int = 64, seed: int = 0) -> Tensor:
        """G(z) of noise z: images (count, 3, S, S), those of `sample.py --count COUNT --seed SEED`."""
        return self._drawn("prior", count, seed)

    def interpolate(self, count: int = 64, seed: int = 0) -> Tensor:
        """A loop of images (count, 3, S, S), of z on the arcs between points of noise, as `sample.py` makes it."""
        return self._drawn("interpolation", count, seed)

    def walk(self, first: int, second: int, places: Sequence[float]) -> Tensor:
        """Images (len(places), 3, S, S) from sample(1, first) to sample(1, second), of a team by its first generator.

        places: shares in [0, 1] of the way, on the arc between the two z.
        """
        sampler, ends = self._samplers[0], []
        for seed in (first, second):
            sampler.reseed(seed)
            ends.append(sampler.noise(self.config.batch_size)[:1])  # as sample draws z: a batch at a time
        z = torch.cat([spherical(*ends, place) for place in places])
        return to_uint8(sampler.prior(z)).cpu()

    def answer(self, images: Tensor | Sequence[str | Path]) -> Tensor:
        """G(z) of G_a's actions z on states: one image for each, (N, 3, S, S); of a team by its first generator.

        images: uint8 (N, 3, S, S), or the names of image files, which are scaled and cut as in training. The weights of
        a run folder need the images that it learned from, for G_a's statistics; exported ones do not. Raises UserError,
        ValueError for images of another form.
        """
        size, agent = self.config.image_size, self._generators[0]
        if self.config.algorithm == "gan":
            raise UserError("A plain GAN has no policy that answers images; load a run of MAGNET.")
        if not isinstance(images, Tensor):
            try:
                images = torch.from_numpy(np.stack([load_image(Path(path), size) for path in images]))
            except BadImage as error:
                raise UserError(f"{error}; give another image.") from error
        if images.dtype != torch.uint8 or images.shape[1:] != (3, size, size):
            raise ValueError(
                f"images are {images.dtype} {tuple(images.shape)}, but must be uint8 (N, 3, {size}, {size})"
            )
        if not hasattr(self._samplers[0], "actor"):
            self._samplers[0] = Sampler(agent, load_states(self.config, None))
        return self._samplers[0].answer(images)

    def _drawn(self, kind: str, count: int, seed: int) -> Tensor:
        for sampler in self._samplers:
            sampler.reseed(seed)
        return draw(self._samplers, kind, count)[0]
