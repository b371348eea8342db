"""A taste that the user teaches by clicking: marked faces, and the preference model that fits them.

    taste = Taste()
    taste.add(faces, liked)  # uint8 (N, 3, S, S), bool (N,); once for each page of faces
    Path("reward.py").write_text(taste.format_source())

The preference model is a logistic regression on 8 x 8 averages of an image. Its log-probability of "liked" is an extra
reward (magnet/game/extra_rewards.py). lesson.py trains by it; the tab Teach of explore.py shows both.
"""

import base64
import textwrap
from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import binary_cross_entropy_with_logits

from magnet.evaluation.pictures import GAP, grid
from magnet.game.extra_rewards import ExtraReward, cell_means
from magnet.support.errors import UserError

ROW, PAGE = 4, 16  # faces in a row and on a page
FIRST_SEED = 1000  # of the pages; the tab Samples has the seeds below it
WIDTH = 640  # of the picture of a page, pixels, about
FRAME, EDGE = (0, 220, 60), 7  # colour and pixels of the frame around a face that is liked
PENALTY = 0.01  # of the squared weights, for standardised averages

# The numbers stand in the file itself, so its digest shows a resumed run whether the reward is the same.
SOURCE = '''"""A taste: the log-probability that the user likes an image. The user liked {liked} of {count} faces.

examples/taste.py wrote it. A run that learned it goes on with `--extra-reward` and the path of this file.
"""

import base64

import numpy as np

NUMBERS = """
{numbers}
"""
WEIGHTS = np.frombuffer(base64.b64decode(NUMBERS), "<f4")  # one for each of the 3 x 8 x 8 averages, and the bias


def reward(states: np.ndarray, images: np.ndarray) -> np.ndarray:
    """Returns log p(liked) of each image; it ignores the states: two uint8 (B, 3, S, S) -> (B,)."""
    count, channels, side, _ = images.shape
    cells = images.reshape(count, channels, 8, side // 8, 8, side // 8).mean(axis=(3, 5), dtype=np.float32) / 255
    return -np.logaddexp(0, -(cells.reshape(count, -1) @ WEIGHTS[:-1] + WEIGHTS[-1]))
'''


class Taste:
    """The marks of a user: pages of faces, each face liked or not."""

    def __init__(self):
        self.pages: list[tuple[Tensor, Tensor]] = []  # uint8 (N, 3, S, S), bool (N,)

    def add(self, faces: Tensor, liked: Tensor) -> None:
        """Adds a page: uint8 (N, 3, S, S) and bool (N,)."""
        self.pages.append((faces, liked))

    def undo(self) -> tuple[Tensor, Tensor] | None:
        """Removes the last page and returns it; None if there is none."""
        return self.pages.pop() if self.pages else None

    @property
    def count(self) -> int:
        """The number of marked faces."""
        return sum(len(faces) for faces, _ in self.pages)

    @property
    def liked_count(self) -> int:
        """The number of marked faces that the user likes."""
        return sum(int(liked.sum()) for _, liked in self.pages)

    def fit(self) -> np.ndarray:
        """Fits the preference model: weights of the 192 averages in [0, 1], then the bias, (193,) float32.

        Raises UserError if the user likes all faces or none.
        """
        if not 0 < self.liked_count < self.count:
            raise UserError(f"{self.liked_count} of {self.count} marked faces are liked: click some and leave others.")
        faces, liked = map(torch.cat, zip(*self.pages, strict=True))
        cells = torch.from_numpy(cell_means(faces.numpy())).flatten(1).double()
        mean, deviation = cells.mean(dim=0), cells.std(dim=0).clamp_min(1e-3)
        inputs, labels = (cells - mean) / deviation, liked.double()
        weights = torch.zeros(inputs.shape[1] + 1, dtype=torch.float64, requires_grad=True)
        optimizer = torch.optim.LBFGS([weights], max_iter=200, line_search_fn="strong_wolfe")

        def loss() -> Tensor:
            optimizer.zero_grad()
            errors = binary_cross_entropy_with_logits(inputs @ weights[:-1] + weights[-1], labels)
            total = errors + PENALTY * weights[:-1].square().sum()
            total.backward()
            return total

        optimizer.step(loss)
        raw = weights.detach()[:-1] / deviation
        return torch.cat([raw, weights.detach()[-1:] - raw @ mean]).float().numpy()

    def format_source(self) -> str:
        """Formats the preference model as a Python file with the function `reward`. Raises UserError as `fit` does."""
        numbers = base64.b64encode(self.fit().astype("<f4").tobytes()).decode()
        return SOURCE.format(count=self.count, liked=self.liked_count, numbers="\n".join(textwrap.wrap(numbers, 100)))


def draw_page(faces: Tensor, liked: Tensor) -> np.ndarray:
    """Draws faces (N, 3, S, S) in rows of ROW, uint8 (H, W, 3), with a frame around each that is liked (N,)."""
    scale = max(1, WIDTH // (ROW * faces.shape[-1]))
    picture, side = grid(faces, ROW, scale), scale * faces.shape[-1] + GAP
    for i in liked.nonzero().flatten().tolist():
        y, x = (i // ROW) * side, (i % ROW) * side
        face = picture[y : y + side + GAP, x : x + side + GAP]
        inner = face[EDGE:-EDGE, EDGE:-EDGE].copy()
        face[:] = FRAME
        face[EDGE:-EDGE, EDGE:-EDGE] = inner
    return picture


class Marking:
    """The work of a user: the present page of faces with its marks, and the taste of the pages before it."""

    def __init__(self, sample: Callable[[int, int], Tensor]):
        """sample: (count, seed) -> faces uint8 (count, 3, S, S), as Model.sample."""
        self.sample, self.taste, self.is_stopped = sample, Taste(), False
        self._open_page()

    def _open_page(self) -> None:
        self.faces = self.sample(PAGE, FIRST_SEED + len(self.taste.pages))
        self.liked = torch.zeros(PAGE, dtype=torch.bool)

    def click(self, x: float, y: float) -> None:
        """Changes the mark of the face at (x, y), in [0, 1] of the width and the height of the page."""
        index = int(y * PAGE / ROW) * ROW + int(x * ROW)
        if 0 <= x < 1 and 0 <= index < PAGE:
            self.liked[index] ^= True

    def turn_page(self) -> None:
        """Adds this page to the taste and opens a new one."""
        self.taste.add(self.faces, self.liked)
        self._open_page()

    def undo(self) -> None:
        """Returns to the last page with its marks, and removes it from the taste."""
        if last := self.taste.undo():
            self.faces, self.liked = last

    def draw(self) -> np.ndarray:
        """Draws the page: uint8 (H, W, 3)."""
        return draw_page(self.faces, self.liked)

    def describe(self) -> str:
        """Says in a sentence how many faces are marked."""
        return f"Marked: {self.taste.count} faces, of which you like {self.taste.liked_count}."


def measure_liked_share(extra: ExtraReward, images: Tensor, tries: int = 1) -> float:
    """Measures the share of uint8 images (N, 3, S, S) that the preference model likes (p > 1/2), in [0, 1].

    tries: k of best of k. Only the best one of each k images counts.
    """
    return (select_best(extra, images, tries)[1] > np.log(0.5)).float().mean().item()


def select_best(extra: ExtraReward, images: Tensor, tries: int) -> tuple[Tensor, Tensor]:
    """Selects the image with the highest reward from each `tries` images (N, 3, S, S). Returns their rewards too."""
    groups = len(images) // tries
    images = images[: groups * tries]
    rewards = extra(images, images).reshape(groups, tries)  # it ignores the states
    best = rewards.argmax(dim=1)
    return images[torch.arange(groups) * tries + best], rewards.max(dim=1).values
