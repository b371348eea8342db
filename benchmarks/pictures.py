"""Picture files for the benchmarks that decode."""

import shutil
from pathlib import Path

from PIL import Image

from magnet.data.image_files import find_images
from magnet.data.synthetic import draw_faces

CELEBA_SIZE = 178, 218


def write_pictures(source: str, count: int, folder: Path) -> None:
    """Fills `folder` with `count` picture files, or as many as there are. Raises UserError."""
    if source != "synthetic":
        for i, path in enumerate(find_images(Path(source))[:count]):
            shutil.copyfile(path, folder / f"{i:06d}{path.suffix}")
        return
    for i, pixels in enumerate(draw_faces(count, 128, seed=0)[0]):
        face = Image.fromarray(pixels.transpose(1, 2, 0)).resize(CELEBA_SIZE, Image.Resampling.BICUBIC)
        face.save(folder / f"{i:06d}.jpg", quality=95)
