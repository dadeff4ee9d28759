"""Every format passes the conformance suite of `cellwright.testing`."""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path

import conformance
import numpy as np
import pytest
from format_examples import EXAMPLES

from cellwright.core.instances import Instances
from cellwright.core.masks import MaskSet
from cellwright.data import formats
from cellwright.data.formats import FORMATS
from cellwright.testing import format_checks
from cellwright.testing.objects import CLASS_NAMES, save_dataset

WRITABLE = [name for name, format_ in FORMATS.items() if format_.is_writable]
CHECKS = [
    (name, check)
    for name in WRITABLE
    for check in format_checks(FORMATS[name], carries=conformance.CARRIES[name]).items()
]


def test_the_table_names_every_format_that_can_write():
    assert sorted(conformance.CARRIES) == sorted(WRITABLE)


@pytest.mark.parametrize("name", FORMATS)
def test_the_key_of_a_format_is_its_name(name):
    assert FORMATS[name].name == name


@pytest.mark.parametrize(("name", "check"), CHECKS, ids=[f"{name}-{check[0]}" for name, check in CHECKS])
def test_formats_that_write(name: str, check: tuple[str, Callable[[Path], None]], tmp_path: Path):
    check[1](tmp_path / "suite")


@pytest.mark.parametrize("name", EXAMPLES)
def test_formats_that_only_read(name, tmp_path):
    (tmp_path / "example").mkdir()
    example = EXAMPLES[name](tmp_path / "example")
    for check_name, check in format_checks(FORMATS[name], example=example).items():
        check(tmp_path / check_name)


@pytest.mark.parametrize("name", [name for name in WRITABLE if name != "coco_results"])
def test_the_output_is_recognised(name, tmp_path):
    objects = {"a": conformance.draw(name, 12), "b": conformance.draw(name, 13)}
    dataset = save_dataset(tmp_path / "in", objects, conformance.class_names(name))
    assert formats.sniff(conformance.write(name, dataset, tmp_path)).name == name


@pytest.mark.parametrize("name", ["rle_csv", "dsb2018_csv", "rle_csv_submission", "geojson", "imagej_roi", "yolo_seg"])
def test_objects_without_a_pixel_are_dropped_with_a_warning(name, tmp_path, caplog):
    objects = conformance.draw(name, 16, n=3)
    boxes = np.vstack([objects.masks.boxes, np.zeros((1, 4), np.int32)])
    crops = [*(objects.masks.crop(k) for k in range(len(objects))), np.zeros((0, 0))]
    more = Instances.from_masks(MaskSet.from_crops(boxes, crops, objects.image_hw))
    dataset = save_dataset(tmp_path / "in", {"a": more}, CLASS_NAMES[:1])
    with caplog.at_level(logging.WARNING):
        again = conformance.read(name, conformance.write(name, dataset, tmp_path), dataset)
    assert "without a pixel" in caplog.text
    assert len(again[0].read_instances()) == len(objects)
