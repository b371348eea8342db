"""The extra reward `smile`: how much a face smiles, by a small classifier that experiments/smile.py trains.

    smile(states, images)   # uint8 (B, 3, S, S) twice -> float32 (B,), logits: above 0 the image smiles

The weights, experiments/smile.pt, were trained on faces of CelebA, so they are for non-commercial research only.
"""

import pickle
from functools import cache
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from magnet.support.errors import UserError
from magnet.support.paths import ROOT

SIZE = 32  # side of the classifier's input in pixels
WEIGHTS = ROOT / "experiments" / "smile.pt"
REMEDY = "make it with `python3 experiments/smile.py`"


class SmileClassifier(nn.Module):
    """Images (B, 3, S, S), uint8 or floats in [0, 255] -> the logit (B,) float32 that each one smiles.

    S is any size. Images that are not 32x32 are resized (bilinear, antialiased).
    """

    def __init__(self):
        super().__init__()
        layers = []
        for inner, outer, stride in ((3, 12, 1), (12, 32, 2), (32, 48, 2), (48, 64, 2)):  # 32x32, 16x16, 8x8, 4x4
            layers += [nn.Conv2d(inner, outer, 3, stride, 1, bias=False), nn.BatchNorm2d(outer), nn.ReLU()]
        self.layers = nn.Sequential(*layers, nn.Flatten(), nn.Linear(64 * 4 * 4, 1))

    def forward(self, images: Tensor) -> Tensor:
        images = images.float()
        if images.shape[-2:] != (SIZE, SIZE):
            images = nn.functional.interpolate(images, (SIZE, SIZE), mode="bilinear", antialias=True)
        return self.layers(images / 127.5 - 1).squeeze(1)


@cache
def load_classifier(path: Path) -> SmileClassifier:
    """The classifier in the file `path`, on the CPU in evaluation mode. It is read once. Raises UserError."""
    if not path.exists():
        raise UserError(f"The reward `smile` needs the file {path}, which is missing: {REMEDY}.")
    with torch.random.fork_rng(devices=[]):  # new layers draw random weights, but training's generator must stay
        classifier = SmileClassifier()
    try:
        classifier.load_state_dict(torch.load(path, map_location="cpu", weights_only=True)["network"])
    except (OSError, RuntimeError, EOFError, ValueError, KeyError, TypeError, pickle.UnpicklingError) as error:
        raise UserError(f"The file {path} does not hold the classifier of the reward `smile`: {REMEDY}.") from error
    return classifier.eval().requires_grad_(False)


def smile(states: np.ndarray, images: np.ndarray) -> np.ndarray:
    """The logit that each image smiles; the states are ignored: uint8 (B, 3, S, S) twice -> float32 (B,).

    Equal images have equal logits. Raises ValueError for another shape or dtype, and UserError if the weights cannot be
    read.
    """
    if images.dtype != np.uint8 or images.ndim != 4 or images.shape[1] != 3:
        raise ValueError(f"images must be (B, 3, S, S) uint8, not {images.shape} {images.dtype}")
    # The trainer may call this under autocast, but a reward must not depend on the precision of the training.
    with torch.inference_mode(), torch.autocast("cpu", enabled=False):
        return load_classifier(WEIGHTS)(torch.from_numpy(images.copy())).numpy()
