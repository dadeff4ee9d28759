"""What becomes of objects: saved by suffix, shown, exported for a submission or another tool."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from cellwright.api.data import read_dataset
from cellwright.api.outputs import claim_file
from cellwright.api.sides import above_threshold
from cellwright.core.dataset import Dataset, Loaded, Sample
from cellwright.core.errors import OutputError, UsageError, did_you_mean
from cellwright.core.image import Image
from cellwright.core.instances import Instances
from cellwright.core.progress import Track, no_progress

if TYPE_CHECKING:
    from matplotlib.axes import Axes

RANKED = ("coco", "coco_results")
SUFFIXES = (".tif", ".tiff", ".png", ".json")


def save(cells: Instances, path: Path | str, *, image: Image | np.ndarray | None = None) -> Path:
    """Write objects; the suffix decides: ``.tif`` label image (uint32), ``.png`` overlay (needs ``image``), ``.json``
    COCO. The file is written whole or not at all. `UsageError` for another suffix."""
    path = Path(path)
    match path.suffix.lower():
        case ".tif" | ".tiff":
            _save_labels(cells, path)
        case ".png":
            if image is None:
                raise UsageError("an overlay needs the image", where=path, remedy="save(cells, path, image=image)")
            _save_overlay(cells, path, image)
        case ".json":
            from cellwright.data.formats import coco
            from cellwright.data.formats.contract import WriteOptions

            names = tuple(f"class{k}" for k in range(int(cells.class_ids.max(initial=0)) + 1))
            sample = Sample(path.stem, None, cells.image_hw, Loaded(cells))
            coco.write(Dataset((sample,), names), path, WriteOptions())
        case other:
            raise UsageError("cannot save objects like this", where=path, got=other, expected=", ".join(SUFFIXES))
    return path


def show(image: Image | np.ndarray, cells: Instances) -> Axes:
    """The image with its objects outlined, on new matplotlib axes."""
    from cellwright.report.show import show as draw

    return draw(image if isinstance(image, Image) else Image.from_array(image), cells)


def export(
    source: Path,
    *,
    to: str,
    out: Path,
    image_ids: Path | None = None,
    overwrite: bool = False,
    track: Track = no_progress,
) -> list[Path]:
    """Write predictions (or truth) in another format; returns the files written.

    The COCO formats get every candidate, since average precision rewards uncertain objects too; all others get the
    objects that reach the score threshold of the prediction folder, the same as in its label images.
    Raises `UsageError` for a format that cannot be written, `OutputError` where ``out`` exists.
    """
    from cellwright.data.formats import FORMATS
    from cellwright.data.formats.contract import WriteOptions

    writable = [name for name, one in FORMATS.items() if one.write is not None]
    if to not in writable:
        raise UsageError(
            "no such export format", got=to, expected=", ".join(writable), remedy=did_you_mean(to, writable)
        )
    if out.suffix:
        claim_file(out, overwrite=overwrite)
    elif not overwrite and out.is_dir() and any(out.iterdir()):
        remedy = "give --overwrite to replace files of the same names, or choose another --out"
        raise OutputError("this folder is not empty", where=out, remedy=remedy)
    dataset = read_dataset(source, require_images=False)
    if to not in RANKED:
        dataset = above_threshold(dataset)
    write = FORMATS[to].write
    assert write is not None
    return write(dataset, out, WriteOptions(image_ids=image_ids, track=track))


def _save_labels(cells: Instances, path: Path) -> None:
    import tifffile

    from cellwright.core.files import atomic_path

    best_first = cells.by_score()
    with atomic_path(path) as temporary:
        tifffile.imwrite(temporary, best_first.masks.to_label_map(best_first.ids), compression="zlib")


def _save_overlay(cells: Instances, path: Path, image: Image | np.ndarray) -> None:
    import cv2

    from cellwright.core.files import write_bytes
    from cellwright.report.draw import draw_overlay

    picture = draw_overlay(image if isinstance(image, Image) else Image.from_array(image), cells)
    write_bytes(path, cv2.imencode(".png", np.ascontiguousarray(picture[:, :, ::-1]))[1].tobytes())
