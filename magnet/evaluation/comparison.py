"""Two sets of images against each other: all scores, with features or without; to samples the nearest real images."""

from collections.abc import Iterable, Iterator

import torch
from torch import Tensor

from magnet.data.image_dataset import ImageDataset, from_uint8, to_uint8
from magnet.evaluation.feature_networks import Embed
from magnet.evaluation.metrics import CHUNK, feature_scores, features, sliced_wasserstein, streamed_features
from magnet.support.random_streams import stream

MOST = 16384  # images of a set whose patches are compared, as Karras et al. did: those of 200,000 would take 24 GB
CANDIDATES = 64  # nearest by pixels, of which the nearest by features is taken


def pick(faces: ImageDataset, indices: Tensor) -> Iterator[Tensor]:
    """Images uint8 (n, 3, S, S) on the CPU, in parts, for indices (N,) as ImageDataset.batch takes them."""
    return (to_uint8(faces.batch(part)).cpu() for part in indices.split(CHUNK))


def spread(count: int) -> Tensor:
    """The places (min(count, MOST),) of the images that are kept of `count`: all, or some evenly spread over them."""
    kept = min(count, MOST)
    return torch.arange(kept) * count // kept


def described(parts: Iterable[Tensor], count: int, embed: Embed | None) -> dict:
    """A set of `count` images (n, 3, S, S) that come in parts: "images", all or MOST of them; "features" (count, F),
    if there is a network; and the "count".
    """
    wanted, kept = torch.zeros(count, dtype=torch.bool), []
    wanted[spread(count)] = True

    def watched() -> Iterator[Tensor]:
        start = 0
        for part in parts:
            kept.append(part[wanted[start : start + len(part)]])
            start += len(part)
            yield part

    found = {"features": streamed_features(embed, watched(), count)} if embed else {}
    if not embed:
        for _ in watched():
            pass
    return {"count": count, "images": torch.cat(kept)} | found


def compare(fakes: dict, reals: dict, frechet: str, device) -> dict[str, float]:
    """All scores of one set against another, the Frechet distance under the name `frechet`; and how many they are."""
    scores = {"samples": fakes["count"], "references": reals["count"]}
    scores |= sliced_wasserstein(fakes["images"].to(device), reals["images"].to(device), stream(0, "patches"))
    if "features" in fakes:
        found = feature_scores(fakes["features"], reals["features"])
        scores |= {frechet: found.pop("frechet")} | found
    return scores


def nearest(samples: Tensor, faces: ImageDataset, embed: Embed | None) -> Tensor:
    """To each of uint8 samples (n, 3, S, S) the most alike of the faces and their mirror images, (n, 3, S, S) uint8.

    By pixels; with `embed` by features, among the 64 nearest by pixels: a large set need not be embedded for it.
    """
    wanted = from_uint8(torch.cat([samples, samples.flip(3)])).flatten(1).to(faces.device)
    rows = torch.arange(len(faces), device=faces.device).split(CHUNK)
    distances = torch.cat([torch.cdist(wanted, faces.batch(indices).flatten(1)) for indices in rows], dim=1)
    distances = torch.cat(distances.chunk(2), dim=1)  # (n, 2N): an image mirrored, or the sample
    candidates = distances.topk(min(CANDIDATES, 2 * len(faces)), largest=False).indices
    if embed:
        found = features(embed, to_uint8(faces.batch(candidates.flatten()))).unflatten(0, candidates.shape)
        closest = (found - features(embed, samples)[:, None]).norm(dim=2).argmin(dim=1, keepdim=True)
        candidates = candidates.gather(1, closest.to(candidates.device))
    return to_uint8(faces.batch(candidates[:, 0])).cpu()
