"""Pictures of where two predictions differ: which images, which part of them, and how the errors are counted."""

from __future__ import annotations

import csv
from pathlib import Path

import cv2
import numpy as np
import tifffile

from cellwright.core.dataset import Dataset, Loaded, Sample
from cellwright.core.instances import Instances
from cellwright.core.masks import MaskSet
from cellwright.evaluation.evaluate import evaluate_images
from cellwright.evaluation.pairing import PairedImages, pair_datasets
from cellwright.report.change_picture import write_changes
from cellwright.report.evaluation_report import change_pictures

HW = (300, 400)


def squares(*places: tuple[int, int]) -> Instances:
    labels = np.zeros(HW, np.int32)
    for k, (y, x) in enumerate(places):
        labels[y : y + 12, x : x + 12] = k + 1
    return Instances.from_masks(MaskSet.from_label_map(labels)[0])


def test_the_part_with_most_changes_of_the_images_that_differ_most(tmp_path: Path) -> None:
    image = tmp_path / "a.tif"
    noise = np.random.default_rng(0).integers(0, 255, (2, *HW), np.uint8)
    tifffile.imwrite(image, noise, metadata={"axes": "ZYX"}, imagej=True)
    far, near = (20, 30), [(250, 340), (270, 360), (250, 370)]
    names = ("same", "few", "many")
    samples = [Sample(name, image, HW, Loaded(squares(far, *near))) for name in names]
    truth = Dataset(tuple(samples), ("cell",), info={"z": 1})

    def predicted(**objects: Instances) -> PairedImages:
        samples = [Sample(name, image, HW, Loaded(own)) for name, own in objects.items()]
        return pair_datasets("p", truth.with_samples(samples), truth)

    all_found, spurious = squares(far, *near), squares(*near, (150, 200))
    pair = (
        predicted(same=spurious, few=spurious, many=squares(far)),
        predicted(same=spurious, few=all_found, many=all_found),
    )
    reports = [evaluate_images(one, ["errors"]) for one in pair]
    changes = write_changes(pair, reports, ("before", "after"), tmp_path / "eval", 5)
    assert [change.image for change in changes] == ["many", "few"]
    many = changes[0]
    assert (many.first, many.second) == (0.25, 1.0)
    assert all(many.y0 <= y and y + 12 <= many.y1 and many.x0 <= x and x + 12 <= many.x1 for y, x in near)
    assert many.y0 > far[0] + 12
    with (tmp_path / "eval" / "changes.csv").open(newline="") as file:
        assert [row["picture"] for row in csv.DictReader(file)] == ["changes/many.png", "changes/few.png"]
    drawn = cv2.imread(str(tmp_path / "eval" / many.picture))
    assert drawn is not None
    side = (drawn.shape[1] - 24) // 3
    assert side % (many.x1 - many.x0) == 0  # three panels, enlarged by a whole factor
    assert drawn[100:400, :side].max(axis=(0, 2)).min() > 50  # the plane of the stack that was chosen, not black
    shown = change_pictures(tmp_path / "eval")
    assert shown is not None
    assert "many: accuracy@0.5 of the whole image 0.250 → 1.000" in shown.pictures[0].caption
    assert write_changes((pair[0], pair[0]), (reports[0], reports[0]), ("a", "b"), tmp_path / "none", 5) == []
    assert not (tmp_path / "none").exists()
    assert change_pictures(tmp_path / "none") is None
