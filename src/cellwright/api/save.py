"""`save`: the objects of one image in the format that the suffix of the file selects."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from cellwright.api.inputs import ImageLike, ObjectsLike, as_image, as_instances, is_list
from cellwright.core.dataset import Dataset, Loaded, Sample
from cellwright.core.errors import InputError, UsageError
from cellwright.core.files import stem_of, write_png
from cellwright.core.image import Image
from cellwright.core.instances import Instances
from cellwright.measurement.table import write_measurements
from cellwright.prediction.writers import write_geojson, write_labels, write_rois

SUFFIXES = (".tif", ".tiff", ".png", ".json", ".geojson", ".zip", ".csv")


def save(
    cells: ObjectsLike,
    path: Path | str,
    *,
    image: ImageLike | None = None,
    class_names: Sequence[str] | None = None,
) -> Path:
    """Write the objects of one image to a file; the suffix selects the format. An existing file is replaced.

    ======== =========================================================
    suffix   content
    ======== =========================================================
    .tif     label image (uint32; labels are the ids of the objects)
    .png     the image with outlines; needs ``image``
    .json    COCO
    .geojson outlines and measurements, for QuPath
    .zip     ImageJ ROIs
    .csv     table of measurements
    ======== =========================================================

    Args:
        cells: `Instances`, a label array (H, W) of any integer type with 0 as background, or the path of a label image.
        path: the file to write. It is written completely or not at all.
        image: an `Image`, an array (H, W) or (H, W, C), or a path; measurements (.csv, .geojson) then include
            intensities, and label images (.tif) its pixel size.
        class_names: names of the classes 0..K-1; None calls a single class "cell", several "class0", "class1", ...

    Returns:
        The path. Where objects overlap, a label image shows the one with the highest score. Regions that are not
        annotated are not in label images and tables.

    Raises:
        UsageError: an unsupported suffix or type, or a picture without an image.
        InputError: an image of another size, or a class id without a name.
        OutputError: the file cannot be written.

    Example:
        >>> import cellwright as cw, numpy as np
        >>> labels = np.zeros((20, 30), np.uint8)
        >>> labels[2:6, 3:8] = 4
        >>> path = cw.save(labels, "cells.geojson")
        >>> cw.read_instances(path).ids.tolist()
        [4]
    """
    if is_list(cells):
        raise UsageError("`save` writes the objects of one image", got="a list", remedy="save the images one by one")
    instances, path = as_instances(cells), Path(path)
    picture = None if image is None else as_image(image)
    names = _class_names(instances, class_names)
    if path.suffix.lower() in (".tif", ".tiff", ".csv"):
        instances = instances[~instances.ignore]
    match path.suffix.lower():
        case ".tif" | ".tiff":
            if picture is not None and picture.image_hw != instances.image_hw:
                raise InputError(
                    "image and objects have different sizes",
                    where=picture.path,
                    got=f"{picture.image_hw[0]} x {picture.image_hw[1]} (height x width)",
                    expected=f"{instances.image_hw[0]} x {instances.image_hw[1]}",
                )
            write_labels(path, instances, None if picture is None else picture.pixel_size_um)
        case ".png":
            if picture is None:
                raise UsageError("a picture needs the image", where=path, remedy="save(cells, path, image=image)")
            _save_overlay(instances, path, picture, class_names)
        case ".json":
            from cellwright.data.formats import FORMATS, WriteOptions

            size_um = None if picture is None else picture.pixel_size_um
            sample = Sample(path.stem, None, instances.image_hw, Loaded(instances), pixel_size_um=size_um)
            FORMATS["coco"].write(Dataset((sample,), names), path, WriteOptions())
        case ".geojson":
            write_geojson(path, instances, picture, sample_id=_sample_id(picture, path), class_names=names)
        case ".zip":
            write_rois(path, instances, picture, class_names=names)
        case ".csv":
            sample_id = _sample_id(picture, path)
            write_measurements(instances, path, image_name=sample_id, image=picture, class_names=names)
        case other:
            raise UsageError("unknown file type for objects", where=path, got=other, expected=", ".join(SUFFIXES))
    return path


def _class_names(cells: Instances, class_names: Sequence[str] | None) -> tuple[str, ...]:
    from cellwright.data.formats.contract import DEFAULT_CLASS

    highest = int(cells.class_ids.max(initial=0))
    if class_names is None:
        return tuple(f"class{k}" for k in range(highest + 1)) if highest else (DEFAULT_CLASS,)
    if highest >= len(class_names):
        raise InputError("an object has a class id without a name", got=highest, expected=", ".join(class_names))
    return tuple(class_names)


def _sample_id(image: Image | None, path: Path) -> str:
    """The name of the image without its suffix, otherwise that of the output file."""
    if image is not None and image.path is not None:
        return stem_of(image.path)
    return path.stem.removesuffix("_measurements").removesuffix("_rois")


def _save_overlay(cells: Instances, path: Path, image: Image, class_names: Sequence[str] | None) -> None:
    from cellwright.report.draw import draw_picture

    write_png(path, draw_picture(image, cells, class_names=class_names))
