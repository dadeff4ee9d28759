"""What every format has to do, written once: `Carries` says what a format can keep, the checks hold it to that.

A new format is conformant when it has a line in `CARRIES` and `test_conformance.py` passes.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import imagecodecs
import numpy as np

from cellwright.core.dataset import Dataset, Loaded, Sample
from cellwright.core.instances import Instances
from cellwright.core.masks import MaskSet
from cellwright.data.formats import FORMATS, ReadOptions, WriteOptions

CLASSES = ("Tumor: Positive", "lymphozyt ä")


@dataclass(frozen=True)
class Carries:
    """What survives writing and reading.

    class_names: False where classes are numbered in the files and named by whoever reads them.
    out: the name of the output below a temporary folder.
    """

    classes: bool = True
    class_names: bool = True
    ids: bool = True
    scores: bool = True
    ignore: bool = True
    overlaps: bool = True
    nested_ids: bool = True
    truth: bool = True
    out: str = "out"


CARRIES = {
    "coco": Carries(),
    "coco_results": Carries(ids=False, ignore=False, truth=False, out="out.json"),
    "mask_folder": Carries(classes=False, scores=False, ignore=False, nested_ids=False),
    "class_masks": Carries(class_names=False, scores=False, ignore=False, overlaps=False),
    "label_images": Carries(classes=False, scores=False, ignore=False, overlaps=False),
    "rle_csv": Carries(ignore=False),
    "rle_csv_submission": Carries(classes=False, ids=False, scores=False, ignore=False, overlaps=False),
    "dsb2018_csv": Carries(classes=False, ids=False, scores=False, ignore=False),
    "imagej_roi": Carries(),
    "geojson": Carries(),
}


def dense_shapes(rng: np.random.Generator, image_hw: tuple[int, int], n: int) -> np.ndarray:
    """Masks (n, H, W) bool: blobs, every third with a hole, every fourth of two parts, some cut by the border."""
    height, width = image_hw
    y, x = np.mgrid[:height, :width] + 0.5
    masks = np.zeros((n, height, width), bool)
    for k in range(n):
        cy, cx = rng.uniform(0, height), rng.uniform(0, width)
        a, b = rng.uniform(2, 7, 2)
        r = ((y - cy) / a) ** 2 + ((x - cx) / b) ** 2
        masks[k] = (r <= 1) & ~((r < 0.2) & (k % 3 == 0))
        if k % 4 == 1:
            masks[k] |= (abs(y - (cy + 9) % height) < 2) & (abs(x - (cx + 12) % width) < 2)
        masks[k, int(cy), int(cx)] = True
    return masks


def draw(
    seed: int, *, image_hw: tuple[int, int] = (41, 58), n: int = 9, overlaps: bool, scored: bool, n_classes: int = 2
) -> Instances:
    """Seeded objects with gaps in their ids, in no order."""
    rng = np.random.default_rng([7, seed])
    dense = dense_shapes(rng, image_hw, n)
    if not overlaps:
        taken = np.zeros(image_hw, bool)
        for k in range(n):
            dense[k] &= ~taken
            taken |= dense[k]
        dense = dense[dense.any((1, 2))]
    n = len(dense)
    ignore = np.zeros(n, bool)
    ignore[:1] = not scored
    return Instances.from_masks(
        MaskSet.from_dense(dense) if n else MaskSet.empty(image_hw),
        ids=rng.permutation(np.arange(1, 4 * n, 3))[:n],
        class_ids=rng.integers(0, n_classes, n),
        scores=rng.permutation(np.linspace(0.1, 0.9, n)).astype(np.float32) if scored else None,
        ignore=ignore,
    )


def dataset_of(folder: Path, named: dict[str, Instances], n_classes: int = 2) -> Dataset:
    """A dataset with a PNG for each of the named images, under ``folder``."""
    samples = []
    for k, (name, instances) in enumerate(named.items()):
        path = folder / f"{name}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        pixels = np.random.default_rng(k).integers(0, 255, (*instances.image_hw, 3), dtype=np.uint8)
        path.write_bytes(imagecodecs.png_encode(pixels))
        samples.append(Sample(name, path, instances.image_hw, Loaded(instances)))
    return Dataset(tuple(samples), CLASSES[:n_classes], folder)


def written(name: str, dataset: Dataset, tmp_path: Path) -> Path:
    """The output of a format's writer, images beside it; every path it names must exist."""
    out = tmp_path / CARRIES[name].out
    writer = FORMATS[name].write
    paths = writer(dataset, out, WriteOptions(copy_images=True))
    assert paths
    assert all(path.exists() for path in paths), paths
    return out


def read_back(name: str, out: Path, original: Dataset) -> Dataset:
    """What the format's reader makes of its writer's output."""
    class_names = None if CARRIES[name].class_names else original.class_names
    return FORMATS[name].read(out, ReadOptions(images=original, class_names=class_names))


def check_round_trip(name: str, dataset: Dataset, again: Dataset) -> None:
    """Every sample under its id, of its size, with the objects that the format can carry."""
    assert sorted(sample.id for sample in again) == sorted(sample.id for sample in dataset)
    for sample in dataset:
        other = again.sample(sample.id)
        assert other.image_hw == sample.image_hw
        assert other.image_path is not None
        assert other.image_path.is_file()
        check_objects(CARRIES[name], dataset, sample.read_instances(), again, other.read_instances())


def check_objects(carries: Carries, dataset: Dataset, before: Instances, again: Dataset, after: Instances) -> None:
    """Equal masks, and equal ids, classes, scores and crowd flags where the format carries them."""
    before, after = ordered(before), ordered(after)
    assert after.masks == before.masks
    if carries.ids:
        assert after.ids.tolist() == before.ids.tolist()
    else:
        assert sorted(after.ids.tolist()) == list(range(1, len(after) + 1))
    if carries.classes:
        names = [[data.class_names[k] for k in cells.class_ids] for data, cells in ((dataset, before), (again, after))]
        assert names[0] == names[1]
    assert (after.scores is None) == (before.scores is None or not carries.scores)
    if after.scores is not None and before.scores is not None:
        assert after.scores.tolist() == before.scores.tolist()
    if carries.ignore:
        assert after.ignore.tolist() == before.ignore.tolist()


def ordered(instances: Instances) -> Instances:
    """Sorted by place and pixels, so that the order in a file does not matter."""
    masks = instances.masks
    keys = [(masks.boxes[k].tolist(), masks.crop(k).tobytes()) for k in range(len(masks))]
    return instances[np.array(sorted(range(len(keys)), key=keys.__getitem__), np.int64)]


def flattened(instances: Instances) -> Instances:
    """What a file that gives a pixel to one object keeps, painted object by object from the last to the first."""
    rank = np.arange(len(instances)) if instances.scores is None else np.argsort(-instances.scores, kind="stable")
    dense = instances.masks.to_dense()
    taken = np.zeros(instances.image_hw, bool)
    for k in rank:
        dense[k] &= ~taken
        taken |= dense[k]
    kept = dense.any((1, 2))
    return replace(instances[kept], masks=MaskSet.from_dense(dense[kept]))
