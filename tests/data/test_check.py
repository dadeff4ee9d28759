"""Each problem that `check_dataset` reports, in datasets that contain it."""

from __future__ import annotations

import dataclasses
import shutil
from pathlib import Path

import numpy as np
import pytest
import tifffile
from PIL import Image as Pillow
from small_sets import counted_dataset, drawn_sample, squares

from cellwright.core.dataset import Dataset, Loaded, Sample
from cellwright.core.errors import InputError
from cellwright.core.instances import Instances
from cellwright.core.masks import MaskSet, concat
from cellwright.data.check import Finding, check_dataset, require_objects
from cellwright.data.formats import WriteOptions, read_dataset
from cellwright.data.formats.mask_folder import MaskFolder

HW = (40, 60)
GOOD = Instances.from_masks(squares([(2, 2), (20, 20)], 6, HW))


def finding_of(findings: list[Finding], text: str) -> Finding:
    """The only finding that contains ``text``."""
    matching = [finding for finding in findings if text in finding.what]
    assert len(matching) == 1, findings
    assert matching[0].remedy
    return matching[0]


def check_objects(tmp_path: Path, masks: MaskSet) -> list[Finding]:
    return check_dataset(Dataset((drawn_sample(tmp_path, "a", Instances.from_masks(masks), 0),), ("x",)))


def test_a_clean_dataset_has_no_findings(tmp_path: Path) -> None:
    samples = [drawn_sample(tmp_path, name, GOOD, seed) for seed, name in enumerate("ab")]
    assert check_dataset(Dataset(tuple(samples), ("x",))) == []


def test_empty_tiny_and_doubled_objects(tmp_path: Path) -> None:
    nothing = MaskSet.from_dense(np.zeros((1, *HW), bool))
    nearly = squares([(20, 20)], 6, HW).to_dense()
    nearly[0, 20, 20] = False
    masks = concat([GOOD.masks, nothing, squares([(0, 50)], 1, HW), GOOD.masks[:1], MaskSet.from_dense(nearly)])
    findings = check_objects(tmp_path, masks)
    assert finding_of(findings, "object 3 with an empty mask").severity == "warning"
    assert finding_of(findings, "object 4 of fewer than 4 px").where == "a"
    assert finding_of(findings, "object 5 annotated twice")
    assert finding_of(findings, "object 6 annotated twice almost identically")
    assert len(findings) == 4


def test_overlaps_are_counted(tmp_path: Path) -> None:
    findings = check_objects(tmp_path, squares([(0, 0), (3, 3), (6, 6), (30, 30)], 5, HW))
    assert finding_of(findings, "3 objects overlap others (2 pairs)").severity == "note"


def test_long_lists_of_ids_are_abbreviated(tmp_path: Path) -> None:
    findings = check_objects(tmp_path, MaskSet.from_dense(np.zeros((9, *HW), bool)))
    assert finding_of(findings, "9 objects (1, 2, 3, 4, 5, ...) with an empty mask")


def test_images_of_another_size_damaged_or_missing(tmp_path: Path) -> None:
    a, b, c, d = (drawn_sample(tmp_path, name, GOOD, seed) for seed, name in enumerate("abcd"))
    Pillow.fromarray(np.zeros((41, 60), np.uint8)).save(tmp_path / "a.png")
    (tmp_path / "b.png").write_bytes((tmp_path / "b.png").read_bytes()[:900])
    (tmp_path / "c.png").unlink()
    dataset = Dataset((a, b, c, dataclasses.replace(d, image_path=None)), ("x",), tmp_path)
    findings = check_dataset(dataset)
    size = finding_of(findings, "the image is 41 x 60 (height x width), but its annotations are for 40 x 60")
    assert (size.severity, size.where) == ("error", "a.png")
    assert finding_of(findings, "cannot be decoded").where.endswith("b.png")
    assert finding_of(findings, "cannot read this image").where.endswith("c.png")
    assert finding_of(findings, "it has no image file").where == "d"
    assert [finding.severity for finding in findings] == ["error", "error", "error", "warning"]


@pytest.mark.parametrize(("splits", "severity"), [((None, None), "warning"), (("train", "val"), "error")])
def test_the_same_pixels_in_two_files(tmp_path: Path, splits: tuple, severity: str) -> None:
    a, b = (drawn_sample(tmp_path, name, GOOD, 0) for name in "ab")
    Pillow.open(tmp_path / "a.png").save(tmp_path / "b.png", compress_level=1)
    samples = [dataclasses.replace(sample, split=split) for sample, split in zip((a, b), splits, strict=True)]
    finding = finding_of(check_dataset(Dataset(tuple(samples), ("x",), tmp_path)), "the same pixels as a")
    assert (finding.where, finding.severity) == ("b.png", severity)


def test_no_objects(tmp_path: Path) -> None:
    dataset = Dataset((drawn_sample(tmp_path, "a", Instances.empty(HW), 0),), ("x",), tmp_path)
    findings = check_dataset(dataset)
    assert finding_of(findings, "this dataset has no objects").severity == "error"
    assert finding_of(findings, "no objects in this image").severity == "note"
    with pytest.raises(InputError, match=r"has no objects\n  where: .*\n  got: 1 image, 0 objects\n  fix: check that"):
        require_objects(dataset)
    require_objects(counted_dataset([[0], [1]]))


def test_a_class_without_a_name(tmp_path: Path) -> None:
    sample = drawn_sample(tmp_path, "a", dataclasses.replace(GOOD, class_ids=np.array([0, 4])), 0)
    assert finding_of(check_dataset(Dataset((sample,), ("x",))), "object 2 of a class without a name")


def test_a_mask_folder_with_all_kinds_of_problems(tmp_path: Path) -> None:
    samples = [drawn_sample(tmp_path, name, GOOD, seed) for seed, name in enumerate("abcd")]
    root = tmp_path / "set"
    MaskFolder().write(Dataset(tuple(samples), ("x",)), root, WriteOptions())
    Pillow.fromarray(np.zeros(HW, np.uint8)).save(root / "a/masks/mask_0009.png")
    Pillow.fromarray(np.ones((9, 9), np.uint8)).save(root / "b/masks/mask_0009.png")
    broken = root / "c/masks/mask_0001.png"
    broken.write_bytes(broken.read_bytes()[:45])
    (root / "d/masks/.ipynb_checkpoints").mkdir()
    (root / "notes.txt").write_text("x")
    findings = check_dataset(read_dataset(root))
    assert "mask_0009.png" in finding_of(findings, "a mask is empty").what
    size = finding_of(findings, "a mask and its image differ in size")
    assert size.where == "b/masks/mask_0009.png"
    assert "got 9 x 9 (height x width); expected 40 x 60" in size.what
    assert finding_of(findings, "cannot be decoded").where == "c/masks/mask_0001.png"
    assert {finding.where for finding in findings if finding.severity == "note"} == {
        "d/masks/.ipynb_checkpoints",
        "notes.txt",
        "set",  # the kinds of files that were skipped
    }
    assert len(findings) == 6


def test_stray_files_of_a_real_dataset_are_reported(vrdl_root: Path, tmp_path: Path) -> None:
    for name in ("TCGA-18-5592-01Z-00-DX1", "TCGA-A7-A13F-01Z-00-DX1"):
        shutil.copytree(vrdl_root / "train" / name, tmp_path / name)
    findings = check_dataset(read_dataset(tmp_path))
    assert [finding.where for finding in findings] == ["TCGA-18-5592-01Z-00-DX1/masks/.ipynb_checkpoints"]


def test_what_was_assumed_about_an_image_is_a_note(tmp_path: Path) -> None:
    tifffile.imwrite(tmp_path / "a.tif", np.full((20, 30), 2**31, np.uint32))
    labels = np.zeros((20, 30), np.uint8)
    labels[4:12, 5:15] = 1
    sample = Sample("a", tmp_path / "a.tif", (20, 30), Loaded(Instances.from_label_map(labels)))
    findings = check_dataset(Dataset((sample,), ("nucleus",), root=tmp_path))
    assert [(f.severity, f.where, f.what) for f in findings] == [
        ("note", "a.tif", "values from 2147483648 to 2147483648 were rounded to 24 bits"),
        ("note", "dataset", "the float32 values reach 2.1475e+09 (0 to 2.14748e+09), not 1"),
    ]
