"""How near generated images are to real ones: numbers from two sets of images.

    scores = sliced_wasserstein(fakes, reals, stream(0, "evaluate"))     # {"swd_32": ..., "swd_16": ..., "swd": ...}
    embed, name = load_inception(None, device)                           # or another of feature_networks.py
    scores |= score_features(compute_features(embed, fakes), compute_features(embed, reals))

Images are uint8 (N, 3, S, S) RGB. A distance is lower for sets that are more alike. The scores of features are computed
by torch-fidelity's own functions, so that they compare with other papers. That package is optional.
"""

from collections.abc import Iterable

import torch
from torch import Tensor
from torch.nn.functional import pad
from tqdm import tqdm

from magnet.data.image_dataset import from_uint8
from magnet.evaluation.feature_networks import Embed

PATCH, PATCHES = 7, 128  # side of a patch; patches cut from an image at each level
COARSEST_SIDE = 16  # side of the pyramid's last level
DIRECTIONS = 512  # Karras et al. take the mean over 4 repeats of 128: the same
BLOCK, CHUNK, ROWS = 32, 256, 8192  # directions, images, patches at a time, so that memory stays bounded

EMBED_BATCH = 64  # images at a time
KID_SUBSETS, KID_SUBSET = 100, 1000  # torch-fidelity's own; fewer images make smaller subsets


def sliced_wasserstein(a: Tensor, b: Tensor, random: torch.Generator) -> dict[str, float]:
    """Sliced Wasserstein distance between local patches, level by level of a Laplacian pyramid, times 1000.

    It says how alike two sets are in structure and texture at each scale, without a trained network (Karras et al.
    2018, arXiv 1710.10196, section 5). a, b: uint8 (N, 3, S, S) of one N, S = 16, 32, 64, ...; random: on any device.
    Returns "swd_S", ..., "swd_16", by the side of the level, and their mean "swd".
    As published, each colour channel of either set gets mean 0 and deviation 1 at every level. So the distance ignores
    a shift or stretch of a channel that all images share, and where in an image a patch lies.
    Two halves of one distribution score more than 0, the more the fewer they are: compare only at the same N.
    Memory: 0.6 GB at N = 5,000. Raises ValueError for other images.
    """
    size = a.shape[-1]
    levels = range(size.bit_length() - COARSEST_SIDE.bit_length() + 1)
    fits = (
        a.dim() == 4
        and a.shape[1:] == (3, size, size)
        and len(a) > 0
        and size == COARSEST_SIDE << max(levels, default=0)
    )
    if a.shape != b.shape or not fits or a.dtype != torch.uint8 or b.dtype != torch.uint8:
        sets = f"{tuple(a.shape)} {a.dtype} and {tuple(b.shape)} {b.dtype}"
        raise ValueError(f"both sets must be uint8 (N, 3, S, S) of one N > 0, S = 16, 32, 64, ..., not {sets}")
    scores = {}
    for level in levels:
        directions = torch.randn(3 * PATCH**2, DIRECTIONS, generator=random, device=random.device).to(a.device)
        one, two = (cut_patches(images, level, random) for images in (a, b))
        scores[f"swd_{size >> level}"] = 1000 * compare_along(one, two, directions / directions.norm(dim=0))
    return scores | {"swd": sum(scores.values()) / len(scores)}


def build_pyramid(images: Tensor) -> list[Tensor]:
    """The Laplacian pyramid of images (N, 3, S, S): (N, 3, S, S), (N, 3, S/2, S/2), ..., (N, 3, 16, 16).

    Each band but the last is what the next coarser image, enlarged, lacks, so their sum is the image (Burt and Adelson
    1983).
    """
    bands = []
    while images.shape[-1] > COARSEST_SIDE:
        coarse = blur(images)[:, :, ::2, ::2]
        bands.append(images - enlarge(coarse))
        images = coarse
    return [*bands, images]


def blur(images: Tensor) -> Tensor:
    """Applies the binomial filter 1 4 6 4 1 along both sides of images (N, 3, S, S), mirrored at the edges."""
    for side, edges in ((2, (0, 0, 2, 2)), (3, (2, 2, 0, 0))):
        padded = pad(images, edges, mode="reflect")
        a, b, c, d, e = (padded.narrow(side, start, images.shape[side]) for start in range(5))
        images = (a + e + 4 * (b + d) + 6 * c) / 16  # twice as fast on a CPU as a convolution
    return images


def enlarge(images: Tensor) -> Tensor:
    """(N, 3, S, S) -> (N, 3, 2S, 2S): zeros between the pixels, then four times the filter."""
    n, c, h, w = images.shape
    sparse = images.new_zeros(n, c, 2 * h, 2 * w)
    sparse[:, :, ::2, ::2] = images
    return 4 * blur(sparse)


def cut_patches(images: Tensor, level: int, random: torch.Generator) -> Tensor:
    """Patches from random places of one level of the images' pyramids: uint8 (N, 3, S, S) -> (128 N, 147).

    Each channel has mean 0 and deviation 1 over the set. The patches are float16, whose rounding is far below the
    noise of any sample: 5,000 images take 190 MB.
    """
    places = (images.shape[-1] >> level) - PATCH + 1  # along a side
    patches = torch.empty(len(images), PATCHES, 3, PATCH**2, dtype=torch.float16, device=images.device)
    for chunk, into in zip(images.split(CHUNK), patches.split(CHUNK), strict=True):
        windows = build_pyramid(from_uint8(chunk))[level].unfold(2, PATCH, 1).unfold(3, PATCH, 1)
        y, x = torch.randint(places, (2, len(chunk), PATCHES), generator=random, device=random.device).to(images.device)
        rows = torch.arange(len(chunk), device=images.device)[:, None]
        into.copy_(windows[rows, :, y, x].flatten(3))  # (n, PATCHES, 3, 7, 7) -> (n, PATCHES, 3, 49)
    for channel in patches.unbind(dim=2):
        deviation, mean = torch.std_mean(channel.float())
        channel.sub_(mean).div_(deviation.clamp_min(1e-6))  # images of one colour have none
    return patches.view(-1, 3 * PATCH**2)


def compare_along(a: Tensor, b: Tensor, directions: Tensor) -> float:
    """Mean Wasserstein-1 distance of points a, b (n, d) along unit directions (d, k), by sorting (Rabin 2011)."""
    distances = ((project(a, u) - project(b, u)).abs().mean(dim=1).sum().item() for u in directions.split(BLOCK, dim=1))
    return sum(distances) / directions.shape[1]


def project(points: Tensor, directions: Tensor) -> Tensor:
    """The sorted coordinates (k, n) float32 of points (n, d) along directions (d, k)."""
    along = torch.cat([directions.T @ rows.float().T for rows in points.split(ROWS)], dim=1)
    if along.is_cuda:
        return along.sort(dim=1).values
    along.numpy().sort(axis=1)  # 20 times as fast as torch on a CPU with AVX-512
    return along


def compute_features(embed: Embed, images: Tensor) -> Tensor:
    """Features (N, F) float64 of uint8 images (N, 3, S, S), N > 1, on the CPU; with a bar on stderr.

    They are float64 because the metrics are small differences of large sums.
    """
    return compute_features_in_parts(embed, [images], len(images))


def compute_features_in_parts(embed: Embed, parts: Iterable[Tensor], count: int) -> Tensor:
    """`compute_features` of `count` images in parts of any sizes, to the same bits."""
    sizes = [len(group) for group in torch.arange(count).tensor_split(-(-count // EMBED_BATCH))]
    parts, waiting, features = iter(parts), [], []  # no group of 1, which an exported network may refuse
    for size in tqdm(sizes, desc="features", unit=f" x {sizes[0]} images", leave=False, disable=None):
        while sum(map(len, waiting)) < size:
            waiting.append(next(parts))
        group, rest = torch.cat(waiting).tensor_split([size])
        waiting = (
            [rest] if len(rest) else []
        )  # an empty tensor would change the layout in memory, and that the last bits
        with torch.no_grad():  # not around next(): parts may need gradients
            features.append(embed(group).double().cpu())
    return torch.cat(features)


def score_features(fakes: Tensor, reals: Tensor) -> dict[str, float]:
    """Four scores of features (N, F) and (M, F), float64, N and M at least 4, as torch-fidelity computes them.

    "frechet": the Frechet distance of the two Gaussians (Heusel et al. 2017, arXiv 1706.08500). It is FID if the
    features are Inception's. It depends on N and M: compare only at the same.
    "kid_x1000": 1000 times the squared MMD under the kernel (x.y/F + 1)^3, mean of 100 subsets of up to 1,000
    (Binkowski et al. 2018, arXiv 1801.01401).
    "precision", "recall": the share of the fakes within the reals' neighbourhoods, of 3 neighbours, and the reverse
    (Kynkaanniemi et al. 2019, arXiv 1904.06991).
    """
    from torch_fidelity.metric_fid import fid_features_to_statistics, fid_statistics_to_metric
    from torch_fidelity.metric_kid import kid_features_to_metric
    from torch_fidelity.metric_prc import prc_features_to_metric

    gaussians = [fid_features_to_statistics(one) for one in (fakes, reals)]
    frechet = fid_statistics_to_metric(*gaussians, verbose=False)["frechet_inception_distance"]
    subset = min(KID_SUBSET, len(fakes), len(reals))
    subsets = 1 if subset == len(fakes) == len(reals) else KID_SUBSETS  # all subsets of everything are alike
    kid = kid_features_to_metric(fakes, reals, kid_subsets=subsets, kid_subset_size=subset, verbose=False)
    neighbours = prc_features_to_metric(fakes, reals, verbose=False)
    return {
        "frechet": frechet, "kid_x1000": 1000 * kid["kernel_inception_distance_mean"],
        "precision": neighbours["precision"], "recall": neighbours["recall"],
    }  # fmt: skip
