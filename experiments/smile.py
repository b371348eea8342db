#!/usr/bin/env python3
"""Trains the classifier of the extra reward `smile` (magnet/game/smile.py) on CelebA's attribute Smiling.

    python3 download_celeba.py --attributes
    python3 experiments/smile.py

It writes experiments/smile.pt: the weights in half precision, and how often they are right on held-out faces. A tenth
of the faces is held out, by a hash of their names. The weights are derived from CelebA: non-commercial research only.
Exit status 2: a mistake in the settings or the data, said in one sentence.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import torch  # noqa: E402
from torch import Tensor, nn  # noqa: E402

from experiments.face_features import evaluate, fit, load_data, move, parse  # noqa: E402
from magnet.game.smile import SIZE, WEIGHTS, SmileClassifier  # noqa: E402
from magnet.support.atomic_files import write_atomically  # noqa: E402
from magnet.support.errors import UserError  # noqa: E402
from magnet.support.output import as_program  # noqa: E402
from magnet.support.random_streams import derived_seed, stream  # noqa: E402

ATTRIBUTE = "Smiling"
LR = 4e-3
SHIFT = 2  # pixels: the largest shift of a face in training
NOISE = 8.0  # grey levels: the largest standard deviation of the noise


def augment(pixels: Tensor, random: torch.Generator) -> Tensor:
    """Faces uint8 (B, 3, S, S) as training sees them: float32 in [0, 255].

    Each one is mirrored or not, shifted, blurred (from not at all to a 3x3 binomial filter) and gets noise. Generated
    images are blurred and noisy too: the classifier must not take either for a smile.
    """
    images = move(pixels, random, SHIFT).float()
    share, deviation = torch.rand(2, len(images), 1, 1, 1, generator=random)
    kernel = torch.tensor([1.0, 2.0, 1.0]) / 4
    kernel = (kernel[:, None] * kernel).expand(3, 1, 3, 3)
    padded = nn.functional.pad(images, (1, 1, 1, 1), mode="replicate")
    images = images.lerp(nn.functional.conv2d(padded, kernel, groups=3), share)
    noise = torch.randn(images.shape, generator=random) * deviation * NOISE
    return (images + noise).clamp(0, 255)


def train_classifier(pixels: Tensor, smiling: Tensor, epochs: int, seed: int) -> SmileClassifier:
    """A classifier that has learned from faces uint8 (N, 3, 32, 32) and smiling (N,) float32 0 or 1; for evaluation."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(derived_seed(seed, "weights"))
        classifier = SmileClassifier()
    fit(classifier, pixels, smiling, augment, LR, epochs, stream(seed, "batches"))
    return classifier.eval()


def save(classifier: nn.Module, held_out_pixels: Tensor, held_out_smiling: Tensor, out: Path) -> str:
    """Writes the classifier to `out` in half precision, with its accuracy on held-out faces; a sentence on that.

    The accuracy is that of the rounded weights. held_out_pixels: uint8 (N, 3, 32, 32). held_out_smiling: (N,) 0 or 1.
    """
    state = classifier.state_dict()
    network = {name: t.half() if t.is_floating_point() else t for name, t in state.items()}
    classifier.load_state_dict(network)
    right = ((evaluate(classifier, held_out_pixels) > 0) == held_out_smiling).double().mean().item()
    saved = {"network": network, "accuracy": right, "held_out": len(held_out_smiling)}
    write_atomically(out, lambda file: torch.save(saved, file))
    share = held_out_smiling.mean().item()
    return (
        f"{right:.2%} of {len(held_out_smiling)} held-out faces right; one answer for all: {max(share, 1 - share):.2%}"
    )


@as_program
def main(arguments: list[str] | None = None) -> int:
    """The program; returns its exit status."""
    options = parse(arguments, __doc__, epochs=50, out=WEIGHTS)
    try:
        training, held_out = load_data(options.data, options.attributes, SIZE, ATTRIBUTE)
        print(save(train_classifier(*training, options.epochs, options.seed), *held_out, options.out))
    except (UserError, OSError) as error:
        print(f"smile.py: {error}", file=sys.stderr)
        return 2
    print(options.out)
    return 0


if __name__ == "__main__":
    sys.exit(main())
