"""What the public functions accept as an image and as the objects of an image.

An image is an `Image`, an `ImageSource` (read whole), an array, a path, a PIL image or a torch tensor; objects are
`Instances`, a label array or a path. Every public function converts its arguments here, so all of them accept the same.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np

from cellwright.core.errors import InputError, UsageError
from cellwright.core.image import Image
from cellwright.core.instances import Instances

if TYPE_CHECKING:
    from PIL.Image import Image as PillowImage
    from torch import Tensor

    from cellwright.data.images.regions import ImageSource

ImageLike: TypeAlias = "Image | ImageSource | np.ndarray | str | Path | PillowImage | Tensor"
ObjectsLike: TypeAlias = "Instances | np.ndarray | str | Path | Tensor"

IMAGE_TYPES = "an Image, an ImageSource, an array (H, W) or (H, W, C), a path, a PIL image, or a torch tensor"
OBJECT_TYPES = "Instances, a label array (H, W) of integers with 0 as background, or a path"
# Objects that cover less of their boxes, as a median, are scattered pixels rather than cells.
_LOWEST_FILL = 0.3
# Modes of PIL images whose pixels are grey levels or colours as they are.
_PIXEL_MODES = frozenset({"1", "L", "LA", "RGB", "RGBA", "I", "I;16", "F"})


def as_image(image: ImageLike) -> Image:
    """An image of any accepted type as an `Image`.

    Arrays are grey (H, W) or channel-last (H, W, C). A channel-first array or tensor (C, H, W) is accepted if its
    shape is unambiguous: C is 1, 3 or 4 and H and W are larger. A path is read as by `read_image`, a source whole.

    Raises `UsageError` for another type, and `InputError` for a shape that is not an image or is ambiguous.

    >>> as_image(np.zeros((20, 30), np.uint8)).describe()
    '20 x 30, uint8, 1 channel (grey)'
    >>> as_image(np.zeros((3, 20, 30), np.uint8)).describe()
    '20 x 30, uint8, 3 channels (R, G, B)'
    """
    if isinstance(image, Image):
        return image
    from cellwright.data.images.source import ImageSource, read_whole

    if isinstance(image, ImageSource):
        return read_whole(image)
    if isinstance(image, str | os.PathLike):
        from cellwright.data.images.read import read_image

        return read_image(Path(image))
    if _is_pillow(image):
        return Image.from_array(_pillow_pixels(image))
    if _is_tensor(image):
        return Image.from_array(_channel_last(_tensor_values(image), is_tensor=True))
    if hasattr(image, "__array__") and hasattr(image, "shape"):
        return Image.from_array(_channel_last(np.asarray(image), is_tensor=False))
    raise UsageError("not an image", got=_type_name(image), expected=IMAGE_TYPES)


def as_images(images: ImageLike | Iterable[ImageLike]) -> tuple[list[Image], bool]:
    """One image or a list of images as a list, and whether it was one image.

    >>> images, single = as_images([np.zeros((20, 30)), np.zeros((20, 30, 3))])
    >>> len(images), single
    (2, False)
    """
    if is_list(images):
        return [as_image(image) for image in images], False  # type: ignore[union-attr]
    return [as_image(images)], True  # type: ignore[arg-type]


def as_instances(objects: ObjectsLike) -> Instances:
    """The objects of one image, of any accepted type, as `Instances`.

    A label array (H, W) of any integer type gives one object per label above 0, with the label as its id, class 0 and
    no score. A path is read as by `read_instances`.

    Raises `UsageError` for another type, and `InputError` for an array that is not a label array.

    >>> as_instances(np.array([[0, 7, 7], [0, 0, 2]], np.uint16)).ids.tolist()
    [2, 7]
    """
    if isinstance(objects, Instances):
        return objects
    if isinstance(objects, str | os.PathLike):
        from cellwright.api.read import read_instances

        return read_instances(Path(objects))
    if _is_tensor(objects):
        return _from_labels(_tensor_values(objects))
    if hasattr(objects, "__array__") and hasattr(objects, "shape"):
        return _from_labels(np.asarray(objects))
    instances = getattr(objects, "instances", None)  # a Prediction
    if isinstance(instances, Instances):
        return instances
    raise UsageError("not the objects of an image", got=_type_name(objects), expected=OBJECT_TYPES)


def as_instances_list(objects: ObjectsLike | Iterable[ObjectsLike]) -> tuple[list[Instances], bool]:
    """The objects of one image or of a list of images as a list, and whether it was one image."""
    if is_list(objects):
        return [as_instances(of_image) for of_image in objects], False  # type: ignore[union-attr]
    return [as_instances(objects)], True  # type: ignore[arg-type]


def is_list(value: object) -> bool:
    """Whether ``value`` holds several inputs: a list, a tuple or another iterable, not an array or a path."""
    single = isinstance(value, str | os.PathLike | Image | Instances | dict) or hasattr(value, "__array__")
    return isinstance(value, Iterable) and not single and not _is_pillow(value)


def _channel_last(array: np.ndarray, *, is_tensor: bool) -> np.ndarray:
    """The array as (H, W) or (H, W, C). ``is_tensor``: channel-first is as usual as channel-last."""
    if array.dtype.kind not in "buif":
        raise InputError("not the pixels of an image", got=f"an array of {array.dtype}", expected="numbers")
    from cellwright.data.images.array_source import channel_axis

    axis = channel_axis(array.shape, is_tensor=is_tensor)
    return array if axis is None else np.moveaxis(array, axis, -1)


def _from_labels(labels: np.ndarray) -> Instances:
    if labels.ndim == 2 and labels.dtype.kind in "iu":
        instances = Instances.from_label_map(labels)
        _check_labels(labels, instances)
        return instances
    if labels.dtype.kind in "iu":
        remedy = "list(labels) gives a list of label arrays, one per image"
        if 1 in labels.shape:
            remedy = "labels.squeeze() removes the axes of length 1"
    elif labels.dtype.kind == "b":
        remedy = "number the objects: skimage.measure.label(mask) gives a label array"
        if labels.ndim == 3:
            remedy = "Instances.from_masks(MaskSet.from_dense(masks)) takes masks (N, H, W)"
    else:
        remedy = "labels.astype('int32') if all values are integers"
    got = f"an array of shape {labels.shape}, {labels.dtype}"
    raise InputError("not a label array", got=got, expected=OBJECT_TYPES, remedy=remedy)


def _check_labels(labels: np.ndarray, instances: Instances) -> None:
    """Raise `InputError` for a label array that looks like a foreground mask, a class mask or a picture."""
    from cellwright.data.formats.contract import ReadOptions
    from cellwright.data.formats.label_io import as_raster
    from cellwright.data.formats.label_kinds import MAX_CLASSES, examine

    x0, y0, x1, y1 = instances.masks.boxes.T.astype(np.int64)
    fill = instances.masks.areas / np.maximum((x1 - x0) * (y1 - y0), 1)
    if not len(instances) or (len(instances) > MAX_CLASSES and np.median(fill) > _LOWEST_FILL and (labels == 0).any()):
        return  # compact objects: labels
    where = "this label array"
    try:
        meaning, notes = examine([(where, as_raster(labels, where))], ReadOptions(), where)
    except InputError as error:
        remedy = "number the objects: skimage.measure.label(mask) gives a label array"
        raise InputError(error.problem, where=where, got=error.got, expected=OBJECT_TYPES, remedy=remedy) from error
    if meaning.background:
        raise InputError(
            "no pixel of this label array is 0, the background",
            got=notes[0].text,
            expected=OBJECT_TYPES,
            remedy="set the background to 0; Instances.from_label_map(labels) takes every value above 0 as an object",
        )


def _is_pillow(value: object) -> bool:
    module = sys.modules.get("PIL.Image")  # a PIL image exists only where PIL is loaded
    return module is not None and isinstance(value, module.Image)


def _is_tensor(value: object) -> bool:
    torch = sys.modules.get("torch")
    return torch is not None and isinstance(value, torch.Tensor)


def _pillow_pixels(image: Any) -> np.ndarray:
    if image.mode == "P":  # a palette: the values are indices of colours
        return np.asarray(image.convert("RGB"))
    if image.mode not in _PIXEL_MODES:
        remedy = "image.convert('RGB') or image.convert('L')"
        raise InputError("this mode of PIL images is not supported", got=image.mode, expected="L or RGB", remedy=remedy)
    return np.asarray(image)


def _tensor_values(tensor: Any) -> np.ndarray:
    tensor = tensor.detach().cpu()
    return (tensor.float() if tensor.dtype.itemsize == 2 and tensor.is_floating_point() else tensor).numpy()


def _type_name(value: object) -> str:
    return f"{type(value).__module__}.{type(value).__qualname__}".removeprefix("builtins.")
