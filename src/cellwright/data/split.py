"""Splits and folds: seeded, alike in density and classes, and never through a group.

A good split is looked for, not constructed: many random deals of whole groups are drawn, each filling the parts to
their share of images, and the one whose parts are most alike wins (iterative stratification's aim, Sechidis et al.
2011, by plain search, which also holds for groups of any size).
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterable, Sequence

import cv2
import numpy as np

from cellwright.core.dataset import Dataset, Sample
from cellwright.core.errors import UsageError
from cellwright.core.image import Image
from cellwright.core.progress import Track, no_progress
from cellwright.data.images.read import read_image

# A sample that is already marked so was set apart by whoever made the data: it is never dealt again.
FIXED_SPLIT = "test"
N_DENSITY_BINS = 4
MAX_DEALS = 256
# Placements in all: a large dataset needs fewer deals, because chance alone makes its parts alike.
DEAL_BUDGET = 400_000


def split_dataset(
    dataset: Dataset,
    val: float = 0.2,
    seed: int = 0,
    *,
    test: float = 0.0,
    group: str | None = None,
    track: Track = no_progress,
) -> Dataset:
    """The dataset with every sample's split set to "train", "val" (and "test").

    val, test: shares of the images, rounded to whole images; at least one image where the share is above 0.
    group: a regular expression on sample ids whose first group (or whole match) names the group a sample belongs to,
        such as "TCGA-(..)" for the hospital; by default `Sample.group`, and samples without one stand alone.
    Samples marked "test" before stay so. Raises `UsageError` where a part would stay empty.
    """
    if not (0 <= val < 1 and 0 <= test < 1 and val + test < 1 and val + test > 0):
        got = f"val {val:g}, test {test:g}"
        raise UsageError("the shares do not leave a split to train on", got=got, expected="0 < val + test < 1")
    names = ("train", "val", "test")
    shares = np.array([1 - val - test, val, test])
    grouped = with_groups(dataset, group)
    movable = [k for k, sample in enumerate(grouped) if sample.split != FIXED_SPLIT]
    part_of = _deal([grouped[k] for k in movable], len(dataset.class_names), shares, seed, track)
    split_of = {k: names[part] for k, part in zip(movable, part_of.tolist(), strict=True)}
    return grouped.with_samples(
        [dataclasses.replace(sample, split=split_of.get(k, FIXED_SPLIT)) for k, sample in enumerate(grouped)]
    )


def folds(
    dataset: Dataset, n_folds: int, seed: int = 0, *, group: str | None = None, track: Track = no_progress
) -> tuple[Dataset, ...]:
    """``n_folds`` datasets; in the k-th, fold k is "val" and the others "train". Samples marked "test" stay so."""
    if n_folds < 2:
        raise UsageError("cross-validation needs at least two folds", got=n_folds, remedy="give --folds 2 or more")
    grouped = with_groups(dataset, group)
    movable = [k for k, sample in enumerate(grouped) if sample.split != FIXED_SPLIT]
    shares = np.full(n_folds, 1 / n_folds)
    part_of = _deal([grouped[k] for k in movable], len(dataset.class_names), shares, seed, track)
    fold_of = dict(zip(movable, part_of.tolist(), strict=True))

    def split(k: int, fold: int) -> str:
        return FIXED_SPLIT if k not in fold_of else "val" if fold_of[k] == fold else "train"

    return tuple(
        grouped.with_samples([dataclasses.replace(s, split=split(k, fold)) for k, s in enumerate(grouped)])
        for fold in range(n_folds)
    )


def with_groups(dataset: Dataset, pattern: str | None) -> Dataset:
    """The dataset with `Sample.group` set from the sample ids; unchanged without a pattern.

    `UsageError` for a pattern that is not a regular expression or fits no sample.
    """
    if pattern is None:
        return dataset
    try:
        expression = re.compile(pattern)
    except re.error as error:
        raise UsageError("--group is not a regular expression", got=repr(pattern), expected=str(error)) from error
    samples = []
    for sample in dataset:
        match = expression.search(sample.id)
        name = None if match is None else match[1] if expression.groups else match[0]
        samples.append(sample if name is None else dataclasses.replace(sample, group=name))
    if all(expression.search(sample.id) is None for sample in dataset):
        example = dataset[0].id if len(dataset) else "no samples"
        raise UsageError("--group fits no sample's id", got=repr(pattern), expected=f"a pattern for ids like {example}")
    return dataset.with_samples(samples)


def _deal(samples: Sequence[Sample], n_classes: int, shares: np.ndarray, seed: int, track: Track) -> np.ndarray:
    """Part (N,) of every sample."""
    units, unit_of = _units(samples)
    wanted = _wanted_images(len(samples), shares)
    n_parts = int((shares > 0).sum())
    if len(units) < n_parts:
        raise UsageError(
            "there are too few images or groups for this split",
            got=f"{len(samples)} images in {len(units)} groups",
            expected=f"at least {n_parts} groups",
            remedy="use fewer folds, finer groups, or more images",
        )
    features = _features(track(samples, "counting objects", total=len(samples)), len(samples), n_classes)
    sizes = np.bincount(unit_of, minlength=len(units))
    unit_features = np.zeros((len(units), features.shape[1]))
    np.add.at(unit_features, unit_of, features)
    rng = np.random.default_rng(seed)
    best, best_cost = None, np.inf
    for _ in range(int(np.clip(DEAL_BUDGET // max(len(units), 1), 8, MAX_DEALS))):
        parts = _random_deal(rng.permutation(len(units)), sizes, wanted)
        cost = _unlikeness(parts, sizes, unit_features, wanted)
        if cost < best_cost:
            best, best_cost = parts, cost
    assert best is not None
    return best[unit_of]


def _units(samples: Sequence[Sample]) -> tuple[list[str], np.ndarray]:
    """Names of the groups, samples without one standing alone, and the group (N,) of every sample."""
    keys = [f"group {s.group}" if s.group is not None else f"sample {s.id}" for s in samples]
    place = {key: k for k, key in enumerate(dict.fromkeys(keys))}
    return list(place), np.array([place[key] for key in keys], np.int64)


def _wanted_images(n: int, shares: np.ndarray) -> np.ndarray:
    """Images (K,) a part: shares rounded, at least 1 where the share is above 0, the first part taking the rest."""
    if np.allclose(shares, shares[0]):
        return np.array([len(part) for part in np.array_split(np.arange(n), len(shares))])
    wanted = np.where(shares > 0, np.maximum(np.floor(shares * n + 0.5), 1), 0).astype(np.int64)
    wanted[0] = max(n - wanted[1:].sum(), 0)
    return wanted


def _features(samples: Iterable[Sample], n: int, n_classes: int) -> np.ndarray:
    """Amounts (N, F) that every part should have its share of: images by density bin, and objects by class."""
    counts, density = np.zeros((n, n_classes)), np.zeros(n)
    for k, sample in enumerate(samples):
        class_ids = sample.read_instances().class_ids
        counts[k] = np.bincount(class_ids, minlength=n_classes)[:n_classes]
        density[k] = len(class_ids) / (sample.image_hw[0] * sample.image_hw[1])
    ranks = np.argsort(np.argsort(density, kind="stable"), kind="stable")
    bins = ranks * min(N_DENSITY_BINS, max(n, 1)) // max(n, 1)
    return np.concatenate([np.eye(N_DENSITY_BINS)[bins], counts], axis=1)


def _random_deal(order: np.ndarray, sizes: np.ndarray, wanted: np.ndarray) -> np.ndarray:
    """Part (U,) of every unit: in random order, each goes to the part that still lacks most images."""
    lacking = wanted.astype(np.int64).copy()
    parts = np.zeros(len(sizes), np.int64)
    for unit in order.tolist():
        part = int(np.argmax(lacking))
        parts[unit] = part
        lacking[part] -= sizes[unit]
    return parts


def _unlikeness(parts: np.ndarray, sizes: np.ndarray, features: np.ndarray, wanted: np.ndarray) -> float:
    """How far each part is from its share of every feature and of the images (squared, relative to the share)."""
    share = wanted / max(wanted.sum(), 1)
    amounts = np.concatenate([sizes[:, None], features], axis=1)
    got = np.zeros((len(wanted), amounts.shape[1]))
    np.add.at(got, parts, amounts)
    total = amounts.sum(axis=0)
    used, present = share > 0, total > 0
    ideal = share[used, None] * total[None, present]
    off = (got[used][:, present] - ideal) / ideal
    # The number of images counts most: it is what was asked for. An empty part is no split at all.
    weights = np.where(np.arange(amounts.shape[1]) == 0, 10.0, 1.0)[present]
    empty = np.bincount(parts, minlength=len(wanted))[used] == 0
    return float((off**2 * weights).sum() + 1e6 * empty.sum())


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
    from scipy.cluster.hierarchy import fcluster, linkage

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
