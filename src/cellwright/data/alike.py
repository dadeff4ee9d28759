"""Groups of images that look alike: fields of one slide or experiment, which must not lie on both sides of a split."""

from __future__ import annotations

import dataclasses

import cv2
import numpy as np
from scipy.cluster.hierarchy import fcluster, linkage

from cellwright.core.dataset import Dataset
from cellwright.core.errors import UsageError
from cellwright.core.image import Image
from cellwright.core.progress import Track, no_progress
from cellwright.data.images.files import read_image

PERCENTILES = (1, 10, 25, 50, 75, 90, 99)
SCALES_PX = (1, 2, 4, 8, 16)
# In units of `_look`. On DSB2018 (664 images) it makes 275 groups; each image that correlates with another above .8
# shares its group.
MAX_DISTANCE = 0.25


def group_alike(dataset: Dataset, track: Track = no_progress) -> Dataset:
    """The dataset with `Sample.group` set: images of one size whose intensities and textures are alike are one group.

    Groups are single-linkage clusters: whatever is closer than ``MAX_DISTANCE`` to any image of a group belongs to it.
    Raises `UsageError` for a sample without an image, `InputError` for one that cannot be read.
    """
    looks: dict[tuple[int, ...], dict[int, np.ndarray]] = {}
    for k, sample in enumerate(track(dataset, "looking at images", total=len(dataset))):
        if sample.image_path is None:
            remedy = "give the dataset with its images, or name groups with --group"
            raise UsageError("a sample has no image to look at", where=sample.id, remedy=remedy)
        image = read_image(sample.image_path)
        look = _look(image)
        looks.setdefault((*image.image_hw, len(look)), {})[k] = look
    samples, n_groups = list(dataset), 0
    for alike in looks.values():
        places, features = list(alike), np.stack(list(alike.values()))
        cluster = fcluster(linkage(features, "single"), MAX_DISTANCE, "distance") if len(places) > 1 else np.ones(1)
        for k, number in zip(places, cluster.astype(int).tolist(), strict=True):
            samples[k] = dataclasses.replace(samples[k], group=f"alike {n_groups + number}")
        n_groups += int(cluster.max())
    return dataset.with_samples(samples)


def _look(image: Image) -> np.ndarray:
    """(7 C + 5,) intensities of each channel at percentiles, and the strength of texture at five scales, as logs."""
    data = image.data[:, :, :-1] if image.channels[-1] == "A" and len(image.channels) > 1 else image.data
    full = float(np.iinfo(data.dtype).max) if data.dtype.kind == "u" else 1.0
    values = data.astype(np.float32) / full
    levels = np.percentile(values.reshape(-1, values.shape[2]), PERCENTILES, axis=0).ravel()
    grey, texture = 255 * values.mean(axis=2), []
    before = grey
    for scale in SCALES_PX:
        smooth = cv2.GaussianBlur(grey, (0, 0), scale)
        texture.append(np.log1p((before - smooth).std()))
        before = smooth
    return np.concatenate([np.log1p(20 * np.clip(levels, 0, None)), texture])
