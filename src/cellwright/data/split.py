"""Split a dataset into training, validation and test sets or folds, and find groups of similar images.

Splits are stratified: the parts are balanced in object density and classes, and a group of samples is never divided.
The aim is that of iterative stratification (Sechidis et al. 2011), reached by random search, which also handles groups
of any size: many random assignments of whole groups are drawn, each filling the parts up to their share of the images,
and the one with the best balance is used.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterable, Sequence

import cv2
import numpy as np

from cellwright.core.dataset import Dataset, Sample
from cellwright.core.errors import UsageError
from cellwright.core.ignored import annotated_px, counted_objects
from cellwright.core.image import Image
from cellwright.core.progress import Track, no_progress
from cellwright.core.text import count
from cellwright.data.images.reading import Reading

# Samples with this split keep it: the authors of the data set them apart.
FIXED_SPLIT = "test"
N_DENSITY_BINS = 4
MAX_DRAWS = 256
# Assignments of groups in total: a large dataset needs fewer draws, because random parts are balanced anyway.
DRAW_BUDGET = 400_000

# Features of images for `group_alike`: percentiles of intensity, and scales of texture in pixels.
PERCENTILES = (1, 10, 25, 50, 75, 90, 99)
SCALES_PX = (1, 2, 4, 8, 16)
# Largest distance of `_appearance` features within a group. For DSB2018 (664 images) it gives 275 groups, and any two
# images with a correlation above .8 are in the same group.
MAX_DISTANCE = 0.25


def split_dataset(
    dataset: Dataset,
    val: float = 0.2,
    seed: int = 0,
    *,
    test: float = 0.0,
    group: str | None = None,
    track: Track = no_progress,
) -> Dataset:
    """Assign each sample to the split "train", "val" or "test".

    val, test: shares of the images, rounded to whole images; at least one image if the share is above 0.
    group: a regular expression for sample ids; its first group, or the whole match, is the group of a sample, such as
        "TCGA-(..)" for the hospital. By default `Sample.group` is used. A sample without a group is one of its own.

    Samples that already have the split "test" keep it. Raises `UsageError` if a part would be empty.
    """
    if not (0 <= val < 1 and 0 <= test < 1 and val + test < 1 and val + test > 0):
        got = f"val {val:g}, test {test:g}"
        raise UsageError("invalid fractions of a split", got=got, expected="0 < val + test < 1")
    names = ("train", "val", "test")
    shares = np.array([1 - val - test, val, test])
    grouped = with_groups(dataset, group)
    movable = [k for k, sample in enumerate(grouped) if sample.split != FIXED_SPLIT]
    part_of = _assign([grouped[k] for k in movable], len(dataset.class_names), shares, seed, track)
    split_of = {k: names[part] for k, part in zip(movable, part_of.tolist(), strict=True)}
    return grouped.with_samples(
        [dataclasses.replace(sample, split=split_of.get(k, FIXED_SPLIT)) for k, sample in enumerate(grouped)]
    )


def folds(
    dataset: Dataset, n_folds: int, seed: int = 0, *, group: str | None = None, track: Track = no_progress
) -> tuple[Dataset, ...]:
    """Datasets for cross-validation: in the k-th of ``n_folds``, fold k is "val" and the others are "train".

    ``group`` as for `split_dataset`. Samples that already have the split "test" keep it. Raises `UsageError` for fewer
    than two folds, or more folds than groups.
    """
    if n_folds < 2:
        raise UsageError("cross-validation needs at least two folds", got=n_folds, remedy="set `folds` to 2 or more")
    grouped = with_groups(dataset, group)
    movable = [k for k, sample in enumerate(grouped) if sample.split != FIXED_SPLIT]
    shares = np.full(n_folds, 1 / n_folds)
    part_of = _assign([grouped[k] for k in movable], len(dataset.class_names), shares, seed, track)
    fold_of = dict(zip(movable, part_of.tolist(), strict=True))

    def split(k: int, fold: int) -> str:
        return FIXED_SPLIT if k not in fold_of else "val" if fold_of[k] == fold else "train"

    return tuple(
        grouped.with_samples([dataclasses.replace(s, split=split(k, fold)) for k, s in enumerate(grouped)])
        for fold in range(n_folds)
    )


def with_groups(dataset: Dataset, pattern: str | None) -> Dataset:
    """The dataset with `Sample.group` set from the sample ids; unchanged if ``pattern`` is None.

    Raises `UsageError` if the pattern is not a regular expression or matches no sample.
    """
    if pattern is None:
        return dataset
    try:
        expression = re.compile(pattern)
    except re.error as error:
        raise UsageError("`group` is not a regular expression", got=repr(pattern), expected=str(error)) from error
    samples = []
    for sample in dataset:
        match = expression.search(sample.id)
        name = None if match is None else match[1] if expression.groups else match[0]
        samples.append(sample if name is None else dataclasses.replace(sample, group=name))
    if all(expression.search(sample.id) is None for sample in dataset):
        example = dataset[0].id if len(dataset) else "no samples"
        raise UsageError(
            "`group` matches no sample id", got=repr(pattern), expected=f"a pattern for ids like {example}"
        )
    return dataset.with_samples(samples)


def _assign(samples: Sequence[Sample], n_classes: int, shares: np.ndarray, seed: int, track: Track) -> np.ndarray:
    """The part (N,) of each sample."""
    units, unit_of = _units(samples)
    quotas = _quotas(len(samples), shares)
    n_parts = int((shares > 0).sum())
    if len(units) < n_parts:
        raise UsageError(
            "too few images or groups for this split",
            got=f"{count(len(samples), 'image')} in {count(len(units), 'group')}",
            expected=f"at least {count(n_parts, 'group')}",
            remedy="use fewer folds, smaller groups, or more images",
        )
    features = _features(track(samples, "counting objects", total=len(samples)), len(samples), n_classes)
    sizes = np.bincount(unit_of, minlength=len(units))
    unit_features = np.zeros((len(units), features.shape[1]))
    np.add.at(unit_features, unit_of, features)
    rng = np.random.default_rng(seed)
    best, best_cost = None, np.inf
    for _ in range(int(np.clip(DRAW_BUDGET // max(len(units), 1), 8, MAX_DRAWS))):
        parts = _random_parts(rng.permutation(len(units)), sizes, quotas)
        cost = _imbalance(parts, sizes, unit_features, quotas)
        if cost < best_cost:
            best, best_cost = parts, cost
    assert best is not None
    return best[unit_of]


def _units(samples: Sequence[Sample]) -> tuple[list[str], np.ndarray]:
    """Names of the units (groups, and samples without a group), and the unit (N,) of each sample."""
    keys = [f"group {s.group}" if s.group is not None else f"sample {s.id}" for s in samples]
    index_of = {key: k for k, key in enumerate(dict.fromkeys(keys))}
    return list(index_of), np.array([index_of[key] for key in keys], np.int64)


def _quotas(n: int, shares: np.ndarray) -> np.ndarray:
    """Images (K,) per part: shares rounded, at least 1 if the share is above 0; the first part takes the rest."""
    if np.allclose(shares, shares[0]):
        return np.array([len(part) for part in np.array_split(np.arange(n), len(shares))])
    quotas = np.where(shares > 0, np.maximum(np.floor(shares * n + 0.5), 1), 0).astype(np.int64)
    quotas[0] = max(n - quotas[1:].sum(), 0)
    return quotas


def _features(samples: Iterable[Sample], n: int, n_classes: int) -> np.ndarray:
    """Features (N, F) to balance between the parts: indicators of density bins, and objects per class."""
    counts, density = np.zeros((n, n_classes)), np.zeros(n)
    for k, sample in enumerate(samples):
        instances = sample.read_instances()
        class_ids = counted_objects(instances).class_ids
        counts[k] = np.bincount(class_ids, minlength=n_classes)[:n_classes]
        density[k] = len(class_ids) / max(annotated_px(instances), 1)
    ranks = np.argsort(np.argsort(density, kind="stable"), kind="stable")
    bins = ranks * min(N_DENSITY_BINS, max(n, 1)) // max(n, 1)
    return np.concatenate([np.eye(N_DENSITY_BINS)[bins], counts], axis=1)


def _random_parts(order: np.ndarray, sizes: np.ndarray, quotas: np.ndarray) -> np.ndarray:
    """The part (U,) of each unit: in the given order, each is assigned to the part that lacks the most images."""
    lacking = quotas.astype(np.int64).copy()
    parts = np.zeros(len(sizes), np.int64)
    for unit in order.tolist():
        part = int(np.argmax(lacking))
        parts[unit] = part
        lacking[part] -= sizes[unit]
    return parts


def _imbalance(parts: np.ndarray, sizes: np.ndarray, features: np.ndarray, quotas: np.ndarray) -> float:
    """Squared relative deviation of the parts from their share of the images and of each feature, summed."""
    share = quotas / max(quotas.sum(), 1)
    amounts = np.concatenate([sizes[:, None], features], axis=1)
    got = np.zeros((len(quotas), amounts.shape[1]))
    np.add.at(got, parts, amounts)
    total = amounts.sum(axis=0)
    used, present = share > 0, total > 0
    ideal = share[used, None] * total[None, present]
    off = (got[used][:, present] - ideal) / ideal
    # The number of images counts most, because it was requested. An empty part is not acceptable.
    weights = np.where(np.arange(amounts.shape[1]) == 0, 10.0, 1.0)[present]
    empty = np.bincount(parts, minlength=len(quotas))[used] == 0
    return float((off**2 * weights).sum() + 1e6 * empty.sum())


# --- groups of similar images ---------------------------------------------------------------------------------------


def group_alike(dataset: Dataset, track: Track = no_progress) -> Dataset:
    """The dataset with `Sample.group` set so that similar images, such as fields of one slide, share a group.

    Images are similar if they have the same size and similar intensities and textures. Groups are single-linkage
    clusters: an image belongs to a group if its distance to any image of the group is at most ``MAX_DISTANCE``.

    Raises `UsageError` for a sample without an image, and `InputError` for an image that cannot be read.
    """
    from scipy.cluster.hierarchy import fcluster, linkage

    of_size: dict[tuple[int, ...], dict[int, np.ndarray]] = {}
    reading = Reading.recorded(dataset.info)
    for k, sample in enumerate(track(dataset, "comparing images", total=len(dataset))):
        if sample.image_path is None:
            remedy = "use the dataset with its images, or set the groups by `group`, a pattern for sample ids"
            raise UsageError("a sample has no image to compare", where=sample.id, remedy=remedy)
        image = reading.of(sample).chosen(sample.image_path)
        features = _appearance(image)
        of_size.setdefault((*image.image_hw, len(features)), {})[k] = features
    samples, n_groups = list(dataset), 0
    for features_of in of_size.values():
        indices, features = list(features_of), np.stack(list(features_of.values()))
        cluster = fcluster(linkage(features, "single"), MAX_DISTANCE, "distance") if len(indices) > 1 else np.ones(1)
        for k, number in zip(indices, cluster.astype(int).tolist(), strict=True):
            samples[k] = dataclasses.replace(samples[k], group=f"alike {n_groups + number}")
        n_groups += int(cluster.max())
    return dataset.with_samples(samples)


def _appearance(image: Image) -> np.ndarray:
    """Features (7 C + 5,): percentiles of each channel and the strength of texture at five scales, as logarithms."""
    data = np.nan_to_num(image.without_alpha().data, posinf=0, neginf=0)
    full = float(np.iinfo(data.dtype).max) if data.dtype.kind == "u" else 1.0
    values = data.astype(np.float32) / full
    levels = np.percentile(values.reshape(-1, values.shape[2]), PERCENTILES, axis=0).ravel()
    grey, texture = 255 * values.mean(axis=2), []
    sharper = grey
    for scale in SCALES_PX:
        smooth = cv2.GaussianBlur(grey, (0, 0), scale)
        texture.append(np.log1p((sharper - smooth).std()))
        sharper = smooth
    return np.concatenate([np.log1p(20 * np.clip(levels, 0, None)), texture])
