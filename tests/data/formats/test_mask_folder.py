"""Mask folders: drawn ones, and published datasets compared with pycocotools."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image as Pillow
from pycocotools import mask as coco_mask

from cellwright.core.dataset import Dataset, Loaded, Sample
from cellwright.core.errors import FormatError, InputError, OutputError, UsageError
from cellwright.core.instances import Instances
from cellwright.core.masks import MaskSet
from cellwright.data.formats import mask_folder, sniff
from cellwright.data.formats.contract import ReadOptions, WriteOptions
from cellwright.data.formats.mask_folder import MaskFolder
from cellwright.data.images.raster import decode_png

HW = (30, 40)


def draw_objects() -> np.ndarray:
    """Three masks (3, H, W): a disc with a hole, two parts, and one pixel in the corner; the first two overlap."""
    y, x = np.mgrid[: HW[0], : HW[1]]
    radius = np.hypot(y - 12, x - 14)
    parts = np.zeros((3, *HW), bool)
    parts[0] = (radius < 9) & (radius > 2)
    parts[1, 10:14, 20:30] = True
    parts[1, 25:28, 2:4] = True
    parts[2, 29, 39] = True
    return parts


def make_sample(root: Path, name: str, masks: dict[str, np.ndarray]) -> Path:
    for part in ("images", "masks"):
        (root / name / part).mkdir(parents=True)
    Pillow.fromarray(np.full((*HW, 3), 90, np.uint8)).save(root / name / "images" / f"{name}.png")
    for file, mask in masks.items():
        Pillow.fromarray(mask).save(root / name / "masks" / file)
    return root / name


def read_first(root: Path) -> Instances:
    return MaskFolder().read(root, ReadOptions())[0].read_instances()


def test_reads_8_bit_16_bit_and_colour_masks_in_natural_order(tmp_path: Path) -> None:
    drawn = draw_objects()
    make_sample(
        tmp_path,
        "a",
        {
            "mask_2.png": np.repeat(drawn[0][:, :, None] * np.uint8(255), 3, axis=2),
            "mask_10.png": drawn[1].astype(np.uint16) * np.uint16(300),
            "mask_11.png": drawn[2] * np.uint8(1),
        },
    )
    dataset = MaskFolder().read(tmp_path, ReadOptions(class_names=("nucleus",)))
    assert dataset.class_names == ("nucleus",)
    assert (dataset[0].id, dataset[0].image_hw, dataset.root) == ("a", HW, tmp_path)
    instances = dataset[0].read_instances()
    np.testing.assert_array_equal(instances.masks.to_dense(), drawn)
    assert instances.ids.tolist() == [2, 10, 11]
    assert instances.scores is None


def test_names_without_numbers_give_ids_from_1(tmp_path: Path) -> None:
    drawn = draw_objects()
    make_sample(tmp_path, "a", {f"{name}.png": drawn[k] for k, name in enumerate(["07a9", "e5", "mask_3"])})
    assert read_first(tmp_path).ids.tolist() == [1, 2, 3]


def test_other_files_are_ignored_and_reported(tmp_path: Path) -> None:
    sample = make_sample(tmp_path, "a", {"mask_1.png": draw_objects()[0]})
    strays = [
        "a/masks/.ipynb_checkpoints/mask_1-checkpoint.png",
        "a/masks/Thumbs.db",
        "a/notes.txt",
        "a/images/.hidden.png",
    ]
    strays += [".DS_Store", "labels.csv", "empty/readme"]
    for stray in strays:
        (tmp_path / stray).parent.mkdir(exist_ok=True)
        (tmp_path / stray).write_text("x")
    assert len(MaskFolder().read(tmp_path, ReadOptions())) == 1
    assert len(read_first(tmp_path)) == 1
    ignored = {entry.path.relative_to(tmp_path).as_posix() for entry in MaskFolder().clutter(tmp_path)}
    assert ignored == {*strays[1:6], "a/masks/.ipynb_checkpoints", "empty"}
    assert sample.is_dir()


def test_samples_without_masks_are_skipped_or_have_no_objects(tmp_path: Path) -> None:
    (make_sample(tmp_path, "a", {}) / "masks").rmdir()
    with pytest.raises(InputError, match="no sample has masks"):
        MaskFolder().read(tmp_path, ReadOptions())
    make_sample(tmp_path, "b", {"mask_1.png": draw_objects()[0]})
    make_sample(tmp_path, "c", {})
    dataset = MaskFolder().read(tmp_path, ReadOptions())
    assert [sample.id for sample in dataset] == ["b", "c"]
    assert "1 sample without a folder masks skipped, such as a" in dataset.notes[0].text
    dataset = MaskFolder().read(tmp_path, ReadOptions(no_objects=True))
    assert [len(sample.read_instances()) for sample in dataset] == [0, 1, 0]


def test_splits_and_masks_in_other_files(tmp_path: Path) -> None:
    make_sample(tmp_path / "train", "a", {"mask_1.png": draw_objects()[0]})
    make_sample(tmp_path / "val", "b", {"mask_1.png": draw_objects()[1]})
    assert sniff(tmp_path).name == "mask_folder"
    dataset = MaskFolder().read(tmp_path, ReadOptions())
    assert [(sample.id, sample.split) for sample in dataset] == [("a", "train"), ("b", "val")]
    (tmp_path / "val/b/masks/mask_1.png").rename(tmp_path / "val/b/masks/mask_1.gif")
    with pytest.raises(InputError, match=r"can be read as a mask(.|\n)*mask_1.gif"):
        MaskFolder().read(tmp_path, ReadOptions())


@pytest.mark.parametrize("kind", ["picture", "labels", "inverted"])
def test_files_that_are_not_the_mask_of_one_object(kind: str, tmp_path: Path) -> None:
    array = np.random.default_rng(0).integers(1, 255, HW, np.uint8)
    if kind != "picture":
        array = np.kron(np.arange(1, 13).reshape(3, 4), np.ones((10, 10))).astype(np.uint8)
    if kind == "inverted":
        array = np.where(draw_objects()[1], 0, 255).astype(np.uint8)
    make_sample(tmp_path, "a", {"mask_1.png": array})
    with pytest.raises(FormatError, match="black on white" if kind == "inverted" else "not the mask of one object"):
        read_first(tmp_path)


def test_errors_name_empty_masks(tmp_path: Path) -> None:
    empty = np.zeros(HW, np.uint8)
    make_sample(tmp_path, "a", {"mask_1.png": draw_objects()[0], "mask_2.png": empty})
    with pytest.raises(FormatError, match=r"a mask is empty\n  where: .*masks\n  got: mask_2\.png(.|\n)*fix: delete"):
        read_first(tmp_path)
    make_sample(tmp_path / "more", "a", {f"mask_{k}.png": empty for k in range(1, 6)})
    with pytest.raises(FormatError, match=r"5 masks are empty(.|\n)*mask_1.png, mask_2.png, mask_3.png and 2 more"):
        read_first(tmp_path / "more")


def test_errors_name_masks_of_another_size_and_truncated_masks(tmp_path: Path) -> None:
    folder = make_sample(tmp_path, "a", {"mask_1.png": draw_objects()[0], "wide.png": np.ones((30, 41), np.uint8)})
    with pytest.raises(FormatError, match=r"wide\.png\n  got: 30 x 41 \(height x width\)\n  expected: 30 x 40"):
        read_first(tmp_path)
    wide = folder / "masks" / "wide.png"
    wide.write_bytes(wide.read_bytes()[:50])
    with pytest.raises(FormatError, match=r"cannot be decoded\n  where: .*wide\.png"):
        read_first(tmp_path)


def test_a_truncated_image_raises_an_error_when_opened(tmp_path: Path) -> None:
    folder = make_sample(tmp_path, "a", {})
    (folder / "images" / "a.png").write_bytes(b"\x89PNG")
    with pytest.raises(FormatError, match=r"a\.png"):
        MaskFolder().read(tmp_path, ReadOptions())


def test_two_images_in_a_sample_and_no_samples(tmp_path: Path) -> None:
    folder = make_sample(tmp_path, "a", {})
    Pillow.fromarray(np.zeros(HW, np.uint8)).save(folder / "images" / "b.png")
    with pytest.raises(FormatError, match=r"exactly one image(.|\n)*got: a\.png, b\.png"):
        MaskFolder().read(tmp_path, ReadOptions())
    with pytest.raises(InputError, match="no sample folders here"):
        MaskFolder().read(tmp_path / "a", ReadOptions())


def test_writing_and_reading_again_gives_the_same_objects(tmp_path: Path) -> None:
    make_sample(
        tmp_path / "in", "a", {f"mask_{k}.png": mask for k, mask in zip((3, 7, 12), draw_objects(), strict=True)}
    )
    dataset = MaskFolder().read(tmp_path / "in", ReadOptions())
    MaskFolder().write(dataset, tmp_path / "out", WriteOptions())
    again = MaskFolder().read(tmp_path / "out", ReadOptions())
    before, after = dataset[0].read_instances(), again[0].read_instances()
    assert before.masks == after.masks
    assert after.ids.tolist() == [3, 7, 12]
    assert again[0].image_path is not None
    assert again[0].image_path.read_bytes() == (tmp_path / "in/a/images/a.png").read_bytes()


def test_writing_several_classes_or_without_images_raises_an_error(tmp_path: Path) -> None:
    empty = Loaded(Instances.from_masks(MaskSet.empty(HW)))
    with pytest.raises(UsageError, match=r"got: 2 classes: a, b"):
        MaskFolder().write(Dataset((Sample("s", None, HW, empty),), ("a", "b")), tmp_path / "out", WriteOptions())
    with pytest.raises(InputError, match=r"must contain the image\n  where: sample s"):
        MaskFolder().write(Dataset((Sample("s", None, HW, empty),), ("a",)), tmp_path / "out", WriteOptions())
    assert not (tmp_path / "out" / "s").exists()


def write_ids(folder: Path, *ids: str) -> list[Path]:
    Pillow.fromarray(np.zeros(HW, np.uint8)).save(folder / "x.png")
    objects = Loaded(Instances.from_masks(MaskSet.from_dense(draw_objects()[:1])))
    samples = tuple(Sample(name, folder / "x.png", HW, objects) for name in ids)
    return MaskFolder().write(Dataset(samples, ("a",)), folder / "out", WriteOptions())


def test_ids_with_folders_are_written_to_one_folder(tmp_path: Path) -> None:
    written = write_ids(tmp_path, "s1/a", "s2/a", "b")
    assert [folder.name for folder in written] == ["s1__a", "s2__a", "b"]
    assert [sample.id for sample in MaskFolder().read(tmp_path / "out", ReadOptions())] == ["b", "s1__a", "s2__a"]


def test_ids_that_give_the_same_folder_are_refused(tmp_path: Path) -> None:
    with pytest.raises(OutputError, match=r"got: s1/a and s1__a"):
        write_ids(tmp_path, "b", "s1/a", "s1__a")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("name", ["..", "."])
def test_ids_that_lead_elsewhere_are_refused(tmp_path: Path, name: str) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "kept.txt").write_text("kept")
    with pytest.raises(OutputError, match="would lead outside the output folder"):
        write_ids(tmp_path, name)
    assert (tmp_path / "out" / "kept.txt").read_text() == "kept"
    assert (tmp_path / "x.png").is_file()


def compare_with_pycocotools(sample: Sample) -> int:
    """Compare our masks with completely decoded PNGs encoded by pycocotools; returns the number of masks."""
    assert sample.image_path is not None
    files = mask_folder.mask_files(sample.image_path.parents[1] / "masks")
    instances = sample.read_instances()
    assert len(files) == len(instances)
    for file, ours in zip(files, instances.masks.to_rle(), strict=True):
        pixels = decode_png(file.read_bytes(), file)
        theirs = coco_mask.encode(np.asfortranarray((pixels if pixels.ndim == 2 else pixels[:, :, :3].max(2)) > 0))
        assert ours["counts"] == theirs["counts"].decode()
    return len(files)


def test_one_real_image_equals_pycocotools(vrdl_root: Path) -> None:
    dataset = MaskFolder().read(vrdl_root / "train", ReadOptions())
    assert len(dataset) == 24
    assert compare_with_pycocotools(dataset.sample("TCGA-A7-A13F-01Z-00-DX1")) == 356


def test_real_rgba_images_equal_pycocotools(dsb_root: Path) -> None:
    dataset = MaskFolder().read(dsb_root, ReadOptions())
    assert len(dataset) == 664
    assert sum(compare_with_pycocotools(sample) for sample in list(dataset)[:8]) > 100


@pytest.mark.slow
def test_all_real_images_equal_pycocotools(vrdl_root: Path, dsb_root: Path) -> None:
    assert sum(map(compare_with_pycocotools, MaskFolder().read(vrdl_root / "train", ReadOptions()))) == 14_597
    assert sum(map(compare_with_pycocotools, MaskFolder().read(dsb_root, ReadOptions()))) == 28_986
