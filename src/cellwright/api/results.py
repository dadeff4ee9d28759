"""What becomes of objects: saved by suffix, shown, exported for a submission or another tool."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from cellwright.api.extras import Extra, write_extra
from cellwright.api.measuring import as_image
from cellwright.core.dataset import Dataset, Loaded, Sample
from cellwright.core.errors import InputError, UsageError
from cellwright.core.files import atomic_path, write_png
from cellwright.core.image import Image
from cellwright.core.instances import Instances

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_EXTRAS: dict[str, Extra] = {".geojson": "geojson", ".zip": "rois", ".csv": "measurements"}
SUFFIXES = (".tif", ".tiff", ".png", ".json", *_EXTRAS)


def save(
    cells: Instances,
    path: Path | str,
    *,
    image: Image | np.ndarray | None = None,
    class_names: Sequence[str] | None = None,
) -> Path:
    """Write objects; the suffix decides. The file is written whole or not at all.

    ``.tif`` label image (uint32), ``.png`` overlay (needs ``image``), ``.json`` COCO, ``.geojson`` QuPath, ``.zip``
    ImageJ ROIs, ``.csv`` measurements. With ``image``, measurements (in ``.csv`` and ``.geojson``) hold intensities.
    class_names: None calls a single class "cell", several "class0", "class1", ...
    Raises `UsageError` for another suffix or an overlay without image, `InputError` for an image of another size or a
    class without a name.
    """
    path, image = Path(path), as_image(image)
    names = _class_names(cells, class_names)
    match path.suffix.lower():
        case ".tif" | ".tiff":
            _save_labels(cells, path)
        case ".png":
            if image is None:
                raise UsageError("an overlay needs the image", where=path, remedy="save(cells, path, image=image)")
            _save_overlay(cells, path, image, class_names)
        case ".json":
            from cellwright.data.formats import FORMATS
            from cellwright.data.formats.contract import WriteOptions

            sample = Sample(path.stem, None, cells.image_hw, Loaded(cells))
            FORMATS["coco"].write(Dataset((sample,), names), path, WriteOptions())
        case ".geojson" | ".zip" | ".csv" as suffix:
            write_extra(_EXTRAS[suffix], path, cells, image, sample_id=_sample_id(image, path), class_names=names)
        case other:
            raise UsageError("cannot save objects like this", where=path, got=other, expected=", ".join(SUFFIXES))
    return path


def show(image: Image | np.ndarray, cells: Instances) -> Axes:
    """The image with its objects outlined, on new matplotlib axes."""
    from cellwright.report.show import show as draw

    return draw(image if isinstance(image, Image) else Image.from_array(image), cells)


def _class_names(cells: Instances, class_names: Sequence[str] | None) -> tuple[str, ...]:
    from cellwright.data.formats.contract import DEFAULT_CLASS

    highest = int(cells.class_ids.max(initial=0))
    if class_names is None:
        return tuple(f"class{k}" for k in range(highest + 1)) if highest else (DEFAULT_CLASS,)
    if highest >= len(class_names):
        raise InputError("an object has a class id without a name", got=highest, expected=", ".join(class_names))
    return tuple(class_names)


def _sample_id(image: Image | None, path: Path) -> str:
    """The image's name without its extension, else that of the file written."""
    if image is not None and image.path is not None:
        return Path(image.path).stem
    return path.stem.removesuffix("_measurements").removesuffix("_rois")


def _save_labels(cells: Instances, path: Path) -> None:
    import tifffile

    best_first = cells.by_score()
    with atomic_path(path) as temporary:
        tifffile.imwrite(temporary, best_first.masks.to_label_map(best_first.ids), compression="zlib")


def _save_overlay(cells: Instances, path: Path, image: Image, class_names: Sequence[str] | None) -> None:

    from cellwright.report.draw import draw_overlay

    picture = draw_overlay(image, cells, class_names=class_names)
    write_png(path, picture)
