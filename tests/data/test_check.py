"""Every fault that `check_dataset` knows, planted and found."""

from __future__ import annotations

import dataclasses
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image as Pillow
from small_sets import counted_dataset, drawn_sample, squares

from cellwright.core.dataset import Dataset
from cellwright.core.errors import InputError
from cellwright.core.instances import Instances
from cellwright.core.masks import MaskSet, concat
from cellwright.data.check import Finding, check_dataset, require_objects
from cellwright.data.formats import WriteOptions, read_dataset
from cellwright.data.formats.mask_folder import MaskFolder

HW = (40, 60)
GOOD = Instances.from_masks(squares([(2, 2), (20, 20)], 6, HW))


def found(findings: list[Finding], text: str) -> Finding:
    matching = [one for one in findings if text in one.what]
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
    assert found(findings, "object 3 with an empty mask").severity == "warning"
    assert found(findings, "object 4 of fewer than 4 px").where == "a"
    assert found(findings, "object 5 outlined twice")
    assert found(findings, "object 6 outlined nearly twice")
    assert len(findings) == 4


def test_overlaps_are_noted_with_their_number(tmp_path: Path) -> None:
    findings = check_objects(tmp_path, squares([(0, 0), (3, 3), (6, 6), (30, 30)], 5, HW))
    assert found(findings, "3 objects overlap others (2 pairs)").severity == "note"


def test_many_ids_are_cut_short(tmp_path: Path) -> None:
    findings = check_objects(tmp_path, MaskSet.from_dense(np.zeros((9, *HW), bool)))
    assert found(findings, "9 objects (1, 2, 3, 4, 5, ...) with an empty mask")


def test_image_of_another_size_unreadable_and_absent(tmp_path: Path) -> None:
    a, b, c, d = (drawn_sample(tmp_path, name, GOOD, seed) for seed, name in enumerate("abcd"))
    Pillow.fromarray(np.zeros((41, 60), np.uint8)).save(tmp_path / "a.png")
    (tmp_path / "b.png").write_bytes((tmp_path / "b.png").read_bytes()[:900])
    (tmp_path / "c.png").unlink()
    dataset = Dataset((a, b, c, dataclasses.replace(d, image_path=None)), ("x",), tmp_path)
    findings = check_dataset(dataset)
    size = found(findings, "the image is 41 x 60 (height x width), its annotations are for 40 x 60")
    assert (size.severity, size.where) == ("error", "a.png")
    assert found(findings, "cannot be decoded").where.endswith("b.png")
    assert found(findings, "cannot read this image").where.endswith("c.png")
    assert found(findings, "no image file is known").where == "d"
    assert [one.severity for one in findings] == ["error", "error", "error", "warning"]


@pytest.mark.parametrize(("splits", "severity"), [((None, None), "warning"), (("train", "val"), "error")])
def test_the_same_pixels_twice_in_other_bytes(tmp_path: Path, splits: tuple, severity: str) -> None:
    a, b = (drawn_sample(tmp_path, name, GOOD, 0) for name in "ab")
    Pillow.open(tmp_path / "a.png").save(tmp_path / "b.png", compress_level=1)
    samples = [dataclasses.replace(one, split=split) for one, split in zip((a, b), splits, strict=True)]
    finding = found(check_dataset(Dataset(tuple(samples), ("x",), tmp_path)), "the same pixels as a")
    assert (finding.where, finding.severity) == ("b.png", severity)


def test_no_objects(tmp_path: Path) -> None:
    dataset = Dataset((drawn_sample(tmp_path, "a", Instances.empty(HW), 0),), ("x",), tmp_path)
    findings = check_dataset(dataset)
    assert found(findings, "this dataset has no objects").severity == "error"
    assert found(findings, "no objects in this image").severity == "note"
    with pytest.raises(InputError, match=r"has no objects\n  where: .*\n  got: 1 images, 0 objects\n  fix: check that"):
        require_objects(dataset)
    require_objects(counted_dataset([[0], [1]]))


def test_a_class_without_a_name(tmp_path: Path) -> None:
    sample = drawn_sample(tmp_path, "a", dataclasses.replace(GOOD, class_ids=np.array([0, 4])), 0)
    assert found(check_dataset(Dataset((sample,), ("x",))), "object 2 of a class without a name")


def test_mask_folder_with_everything_wrong(tmp_path: Path) -> None:
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
    assert "mask_0009.png" in found(findings, "a mask has no pixel").what
    size = found(findings, "another size than its image")
    assert size.where == "b/masks/mask_0009.png"
    assert "got 9 x 9 (height x width); expected 40 x 60" in size.what
    assert found(findings, "cannot be decoded").where == "c/masks/mask_0001.png"
    assert {one.where for one in findings if one.severity == "note"} == {"d/masks/.ipynb_checkpoints", "notes.txt"}
    assert len(findings) == 5


def test_real_clutter_is_found(vrdl_root: Path, tmp_path: Path) -> None:
    for name in ("TCGA-18-5592-01Z-00-DX1", "TCGA-A7-A13F-01Z-00-DX1"):
        shutil.copytree(vrdl_root / "train" / name, tmp_path / name)
    findings = check_dataset(read_dataset(tmp_path))
    assert [one.where for one in findings] == ["TCGA-18-5592-01Z-00-DX1/masks/.ipynb_checkpoints"]
