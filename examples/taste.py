"""A taste that is taught by clicking: marked faces, and the preference model that fits them.

    taste = Taste()
    taste.add(faces, liked)  # uint8 (N, 3, S, S), bool (N,); once for each page of faces
    Path("reward.py").write_text(taste.source())

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
FIRST_SEED = 1000  # of the pages; the seeds below it are those of the page's samples
WIDTH = 640  # of the picture of a page, pixels, about
FRAME, EDGE = (0, 220, 60), 7  # colour and pixels of the frame around a face that is liked
PENALTY = 0.01  # of the squared weights, for standardised averages

# The numbers stand in the file itself: its digest tells a run that goes on whether the reward is the same.
SOURCE = '''"""A taste: the log-probability that an image is liked. Of {count} faces the user liked {liked}.

It was written by examples/taste.py. A run that learned it goes on with `--extra-reward` and the path of this file.
"""

import base64

import numpy as np

NUMBERS = """
{numbers}
"""
WEIGHTS = np.frombuffer(base64.b64decode(NUMBERS), "<f4")  # one for each of the 3 x 8 x 8 averages, and the bias


def reward(states: np.ndarray, images: np.ndarray) -> np.ndarray:
    """log p(liked) of each image, whatever its state: two uint8 (B, 3, S, S) -> (B,)."""
    count, channels, side, _ = images.shape
    cells = images.reshape(count, channels, 8, side // 8, 8, side // 8).mean(axis=(3, 5), dtype=np.float32) / 255
    return -np.logaddexp(0, -(cells.reshape(count, -1) @ WEIGHTS[:-1] + WEIGHTS[-1]))
'''


class Taste:
    """The marks of a user: pages of faces, each face liked or not."""

    def __init__(self):
        self.pages: list[tuple[Tensor, Tensor]] = []  # uint8 (N, 3, S, S), bool (N,)

    def add(self, faces: Tensor, liked: Tensor) -> None:
        """Takes in a page: uint8 (N, 3, S, S) and bool (N,). Faces that are not liked count as such."""
        self.pages.append((faces, liked))

    def undo(self) -> tuple[Tensor, Tensor] | None:
        """Forgets the last page, and returns it; None if there is none."""
        return self.pages.pop() if self.pages else None

    @property
    def count(self) -> int:
        """How many faces are marked."""
        return sum(len(faces) for faces, _ in self.pages)

    @property
    def liked_count(self) -> int:
        """How many of them are liked."""
        return sum(int(liked.sum()) for _, liked in self.pages)

    def fit(self) -> np.ndarray:
        """The preference model: weights of the 192 averages in [0, 1], behind them the bias, (193,) float32.

        Raises UserError if all faces are liked, or none is.
        """
        if not 0 < self.liked_count < self.count:
            raise UserError(f"{self.liked_count} of {self.count} marked faces are liked: click some, and leave others.")
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

    def source(self) -> str:
        """The preference model as a Python file with the function `reward`. Raises UserError as `fit` does."""
        numbers = base64.b64encode(self.fit().astype("<f4").tobytes()).decode()
        return SOURCE.format(count=self.count, liked=self.liked_count, numbers="\n".join(textwrap.wrap(numbers, 100)))


def page_picture(faces: Tensor, liked: Tensor) -> np.ndarray:
    """A page of faces (N, 3, S, S) in rows of ROW, uint8 (H, W, 3), with a frame around each that is liked (N,)."""
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
    """A user at work: the page of faces that is being marked, and the taste of the pages before it."""

    def __init__(self, sample: Callable[[int, int], Tensor]):
        """sample: (count, seed) -> faces uint8 (count, 3, S, S), as Model.sample."""
        self.sample, self.taste, self.is_stopped = sample, Taste(), False
        self._turn()

    def _turn(self) -> None:
        self.faces = self.sample(PAGE, FIRST_SEED + len(self.taste.pages))
        self.liked = torch.zeros(PAGE, dtype=torch.bool)

    def click(self, x: float, y: float) -> None:
        """Likes the face at (x, y), in [0, 1] of the width and the height of `picture`; or no longer likes it."""
        index = int(y * PAGE / ROW) * ROW + int(x * ROW)
        if 0 <= x < 1 and 0 <= index < PAGE:
            self.liked[index] ^= True

    def next(self) -> None:
        """Keeps the marks of this page, and turns to a new one."""
        self.taste.add(self.faces, self.liked)
        self._turn()

    def undo(self) -> None:
        """Turns back to the last page, with its marks, which count no more until `next`."""
        if last := self.taste.undo():
            self.faces, self.liked = last

    def picture(self) -> np.ndarray:
        """The page as uint8 (H, W, 3), with a frame around each face that is liked."""
        return page_picture(self.faces, self.liked)

    def describe(self) -> str:
        """How much is marked, in a sentence."""
        return f"Marked: {self.taste.count} faces, of which you like {self.taste.liked_count}."


def liked_share(extra: ExtraReward, images: Tensor, tries: int = 1) -> float:
    """The share of uint8 images (N, 3, S, S) that the preference model likes (p > 1/2), in [0, 1].

    tries: k of best of k. Of each k images only the one that the model likes best counts.
    """
    return (best_of(extra, images, tries)[1] > np.log(0.5)).float().mean().item()


def best_of(extra: ExtraReward, images: Tensor, tries: int) -> tuple[Tensor, Tensor]:
    """Of each `tries` of the images (N, 3, S, S) the one with the highest reward, and that reward (N // tries,)."""
    groups = len(images) // tries
    images = images[: groups * tries]
    rewards = extra(images, images).reshape(groups, tries)  # it ignores the states
    best = rewards.argmax(dim=1)
    return images[torch.arange(groups) * tries + best], rewards.max(dim=1).values
