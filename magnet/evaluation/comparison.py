"""Two sets of images against each other: all scores, with features from a network or without."""

import torch
from torch import Tensor

from magnet.data.image_dataset import ImageDataset, to_uint8
from magnet.evaluation.metrics import feature_scores, features, sliced_wasserstein
from magnet.support.random_streams import stream


def pick(faces: ImageDataset, indices: Tensor) -> Tensor:
    """Images uint8 (n, 3, S, S) on the CPU, for indices (n,) as ImageDataset.batch takes them."""
    return torch.cat([to_uint8(faces.batch(part)).cpu() for part in indices.split(256)])


def described(images: Tensor, embed) -> dict:
    """A set of images (N, 3, S, S), with their features (N, F) if there is a network."""
    return {"images": images} | ({"features": features(embed, images)} if embed else {})


def rows(described: dict, start: int, stop: int) -> dict:
    """Part of a set that `described` gave."""
    return {key: values[start:stop] for key, values in described.items()}


def compare(fakes: dict, reals: dict, frechet: str, device) -> dict[str, float]:
    """All scores of one set against another, the Frechet distance under the name `frechet`; and how many they are."""
    scores = {"samples": len(fakes["images"]), "references": len(reals["images"])}
    scores |= sliced_wasserstein(fakes["images"].to(device), reals["images"].to(device), stream(0, "patches"))
    if "features" in fakes:
        found = feature_scores(fakes["features"], reals["features"])
        scores |= {frechet: found.pop("frechet")} | found
    return scores
