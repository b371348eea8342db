"""Two sets of images against each other, with or without features; and the real images nearest to samples."""

from collections.abc import Iterable, Iterator

import torch
from torch import Tensor

from magnet.data.image_dataset import ImageDataset, from_uint8, to_uint8
from magnet.evaluation.feature_networks import Embed
from magnet.evaluation.metrics import (
    CHUNK,
    compute_features,
    compute_features_in_parts,
    score_features,
    sliced_wasserstein,
)
from magnet.support.random_streams import stream

MAX_IMAGES = 16384  # images of a set whose patches are compared, as in Karras et al.: those of 200,000 would take 24 GB
CANDIDATES = 64  # the images nearest by pixels, among which the nearest by features is searched


def pick(faces: ImageDataset, indices: Tensor) -> Iterator[Tensor]:
    """Images uint8 (n, 3, S, S) on the CPU, in parts, for indices (N,) as ImageDataset.batch takes them."""
    return (to_uint8(faces.batch(part)).cpu() for part in indices.split(CHUNK))


def choose_evenly(count: int) -> Tensor:
    """The indices (min(count, MAX_IMAGES),) of images among `count`: all, or some that are evenly spaced."""
    size = min(count, MAX_IMAGES)
    return torch.arange(size) * count // size


def collect_set(parts: Iterable[Tensor], count: int, embed: Embed | None) -> dict:
    """A set of `count` images (n, 3, S, S) that come in parts, for `compare`: "count", "images" and "features".

    "images" are all or MAX_IMAGES of them. "features" (count, F) are there if `embed` is.
    """
    is_kept, images = torch.zeros(count, dtype=torch.bool), []
    is_kept[choose_evenly(count)] = True

    def watch() -> Iterator[Tensor]:
        start = 0
        for part in parts:
            images.append(part[is_kept[start : start + len(part)]])
            start += len(part)
            yield part

    if embed:
        features = {"features": compute_features_in_parts(embed, watch(), count)}
    else:
        features = {}
        for _ in watch():
            pass
    return {"count": count, "images": torch.cat(images)} | features


def compare(fakes: dict, reals: dict, frechet: str, device) -> dict[str, float]:
    """All scores of one set against another, with their counts. frechet: the name of the Frechet distance."""
    scores = {"samples": fakes["count"], "references": reals["count"]}
    scores |= sliced_wasserstein(fakes["images"].to(device), reals["images"].to(device), stream(0, "patches"))
    if "features" in fakes:
        by_features = score_features(fakes["features"], reals["features"])
        scores |= {frechet: by_features.pop("frechet")} | by_features
    return scores


def find_nearest(samples: Tensor, faces: ImageDataset, embed: Embed | None) -> Tensor:
    """For each of uint8 samples (n, 3, S, S) the nearest of the faces and their mirror images: (n, 3, S, S) uint8.

    They are nearest by pixels; with `embed` by features, among the 64 nearest by pixels. So a large set need not be
    embedded for it.
    """
    queries = from_uint8(torch.cat([samples, samples.flip(3)])).flatten(1).to(faces.device)
    rows = torch.arange(len(faces), device=faces.device).split(CHUNK)
    distances = torch.cat([torch.cdist(queries, faces.batch(indices).flatten(1)) for indices in rows], dim=1)
    distances = torch.cat(distances.chunk(2), dim=1)  # (n, 2N): to mirror an image is to mirror the sample
    candidates = distances.topk(min(CANDIDATES, 2 * len(faces)), largest=False).indices
    if embed:
        features = compute_features(embed, to_uint8(faces.batch(candidates.flatten()))).unflatten(0, candidates.shape)
        distances = (features - compute_features(embed, samples)[:, None]).norm(dim=2)
        candidates = candidates.gather(1, distances.argmin(dim=1, keepdim=True).to(candidates.device))
    return to_uint8(faces.batch(candidates[:, 0])).cpu()
