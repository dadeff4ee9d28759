"""What counts as an image and as the objects of an image, and what the errors say about the rest."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import tifffile
import torch
from PIL import Image as Pillow

from cellwright.api.inputs import as_image, as_images, as_instances, as_instances_list
from cellwright.core.errors import InputError, UsageError
from cellwright.core.image import Image

RGB = np.random.default_rng(0).integers(0, 255, (20, 30, 3), dtype=np.uint8)
GREY = RGB[:, :, 0]
LABELS = np.zeros((20, 30), np.int32)
LABELS[2:6, 3:9], LABELS[10:15, 20:28] = 4, 9


@pytest.mark.parametrize(
    "image",
    [
        Image.from_array(RGB),
        RGB,
        RGB.transpose(2, 0, 1),
        Pillow.fromarray(RGB),
        torch.from_numpy(RGB),
        torch.from_numpy(RGB).permute(2, 0, 1),
    ],
    ids=["Image", "array", "channel-first array", "PIL", "tensor", "channel-first tensor"],
)
def test_every_type_gives_the_same_pixels(image: object) -> None:
    converted = as_image(image)  # type: ignore[arg-type]
    assert converted.channels == ("R", "G", "B")
    np.testing.assert_array_equal(converted.data, RGB)


def test_a_path_is_read(tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    Pillow.fromarray(RGB).save(path)
    for name in (path, str(path)):
        np.testing.assert_array_equal(as_image(name).data, RGB)


@pytest.mark.parametrize("grey", [GREY, GREY[:, :, None], torch.from_numpy(GREY.copy()), Pillow.fromarray(GREY)])
def test_grey_images_have_one_channel(grey: object) -> None:
    np.testing.assert_array_equal(as_image(grey).data, GREY[:, :, None])  # type: ignore[arg-type]


def test_other_modes_and_types() -> None:
    palette = Pillow.fromarray(RGB).quantize(16)
    np.testing.assert_array_equal(as_image(palette).data, np.asarray(palette.convert("RGB")))
    assert as_image(torch.rand(20, 30, dtype=torch.bfloat16)).data.dtype == np.float32
    assert as_image(torch.rand(3, 20, 30, requires_grad=True)).n_channels == 3
    assert as_image(np.zeros((20, 30, 7), np.uint16)).n_channels == 7
    with pytest.raises(InputError, match="CMYK"):
        as_image(Pillow.new("CMYK", (4, 4)))


def test_a_numpy_array_that_could_be_either_is_channel_last() -> None:
    assert as_image(np.zeros((3, 40, 3), np.uint8)).image_hw == (3, 40)
    assert as_image(np.zeros((1, 2, 1), np.uint8)).image_hw == (1, 2)


@pytest.mark.parametrize("array", [torch.zeros(3, 40, 4), np.zeros((5, 40, 40), np.uint8), torch.zeros(2, 40, 40)])
def test_a_shape_that_could_be_either_is_refused(array: object) -> None:
    with pytest.raises(InputError, match=r"first or its last axis[\s\S]*moveaxis"):
        as_image(array)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("image", "message"),
    [
        (np.zeros((2, 3, 20, 30)), r"list\(batch\)"),
        (np.zeros(5), r"\(H, W\) or \(H, W, C\)"),
        (np.array([["a", "b"]]), "numbers"),
        (np.zeros((4, 4), complex), "numbers"),
    ],
)
def test_arrays_that_are_not_one_image(image: np.ndarray, message: str) -> None:
    with pytest.raises(InputError, match=message):
        as_image(image)


@pytest.mark.parametrize("image", [None, 3, {"image": RGB}, b"bytes"])
def test_other_types_are_named_with_the_accepted_ones(image: object) -> None:
    with pytest.raises(UsageError, match=r"not an image[\s\S]*PIL image"):
        as_image(image)  # type: ignore[arg-type]


def test_one_image_or_several() -> None:
    assert as_images(RGB)[1]
    for several in ([RGB, GREY], (RGB, GREY), iter([RGB, GREY])):
        images, single = as_images(several)
        assert (len(images), single) == (2, False)
    assert as_images([]) == ([], False)


@pytest.mark.parametrize("dtype", ["uint8", "int8", "uint16", "int32", "uint32", "int64", "uint64"])
def test_label_arrays_of_any_integer_type(dtype: str) -> None:
    objects = as_instances(LABELS.astype(dtype))
    assert objects.ids.tolist() == [4, 9]
    assert objects.scores is None
    np.testing.assert_array_equal(objects.masks.to_label_map(objects.ids), LABELS)


def test_objects_of_other_types(tmp_path: Path) -> None:
    objects = as_instances(LABELS)
    assert as_instances(objects) is objects
    assert as_instances(torch.from_numpy(LABELS)).masks == objects.masks
    tifffile.imwrite(tmp_path / "a_masks.tif", LABELS.astype(np.uint16))
    assert as_instances(tmp_path / "a_masks.tif").masks == objects.masks
    assert len(as_instances(np.zeros((5, 5), np.int64))) == 0
    several, single = as_instances_list([objects, LABELS])
    assert (len(several), single) == (2, False)
    assert as_instances_list(LABELS)[1]


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        (LABELS > 0, r"skimage\.measure\.label"),
        (np.stack([LABELS > 4, LABELS == 4]), "from_dense"),
        (LABELS.astype(np.float32), "astype"),
        (LABELS[None], "squeeze"),
        (-LABELS, "negative"),
    ],
)
def test_arrays_that_are_not_labels(labels: np.ndarray, message: str) -> None:
    with pytest.raises(InputError, match=message):
        as_instances(labels)


def test_objects_of_a_wrong_type() -> None:
    with pytest.raises(UsageError, match=r"list[\s\S]*label array"):
        as_instances([LABELS])  # type: ignore[arg-type]
