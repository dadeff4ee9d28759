"""Reading what is on disk: an image, the objects of one image, a dataset."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from cellwright.core.dataset import Dataset
from cellwright.core.errors import UsageError
from cellwright.core.files import plain_suffix
from cellwright.core.image import Image
from cellwright.core.instances import Instances
from cellwright.core.notes import summarise
from cellwright.core.progress import SILENT, ProgressReporter
from cellwright.core.text import count

if TYPE_CHECKING:
    import numpy as np

    from cellwright.data.formats import Format
    from cellwright.data.formats.contract import Prefer
    from cellwright.data.images.channels import ChannelChoice
    from cellwright.data.images.reading import Reading
    from cellwright.data.images.regions import ImageSource
    from cellwright.data.images.tiff import Plane

DATASET_FILE = "dataset.json"


def read_image(
    path: Path | str,
    *,
    channel: ChannelChoice | None = None,
    z: Plane | None = None,
    t: int | None = None,
    series: int | str | None = None,
    pixel_size: float | Sequence[float] | None = None,
    level: int = 0,
) -> Image:
    """Read an image in its own dtype, with all channels: TIFF, OME-TIFF and ImageJ TIFF, PNG, JPEG, BMP, WebP.

    With the extras ``zarr`` and ``slides``, OME-Zarr and whole-slide images too. `open_image` reads parts of images of
    any size.

    Args:
        path: the file, or the folder of a Zarr image.
        channel: the channels to keep: a name, a 0-based index, alternatives ("DAPI|Hoechst": the first that exists), or
            a list of these. None keeps all.
        z: plane of a z stack, counted from 0, or "max" or "mean" of all planes.
        t: time point, counted from 0.
        series: number or name of one image in a file of several.
        pixel_size: microns per pixel, one number or (y, x), instead of what the file says.
        level: 0 for the full size, or a smaller copy that the file holds.

    Returns:
        An `Image` with ``data`` (H, W, C), channel names, the pixel size if the file contains it, and ``notes`` that
        say what was assumed.

    Raises:
        InputError: the file is missing, cannot be decoded or needs more memory than there is, or a plane or series must
            be chosen.
        UsageError: a channel, plane, series or level does not exist.

    Example:
        >>> import cellwright as cw, numpy as np, tifffile
        >>> tifffile.imwrite("cells.tif", np.zeros((48, 64), np.uint16))
        >>> image = cw.read_image("cells.tif")
        >>> image.data.shape, image.data.dtype
        ((48, 64, 1), dtype('uint16'))
    """
    from cellwright.data.images.read import read_image as read

    return read(path, channel=channel, z=z, t=t, series=series, pixel_size=pixel_size, level=level)


def open_image(
    image: str | Path | np.ndarray | Image | ImageSource,
    *,
    channel: ChannelChoice | None = None,
    z: Plane | None = None,
    t: int | None = None,
    series: int | str | None = None,
    pixel_size: float | Sequence[float] | None = None,
    level: int | None = None,
) -> ImageSource:
    """Open an image of any size, to read regions of it. Nothing is decoded yet.

    Of a tiled TIFF, a Zarr image or a slide, a region costs the tiles that it needs; about 64 MB of decoded tiles are
    kept for the next region. Of other files and of strips, it costs what the file stores in one piece. Regions have the
    pixels, channel names and notes that `read_image` gives; smaller copies in the file are further levels.

    Args:
        image: a path (all formats of `read_image`; Zarr with the extra ``zarr``; ``.svs``, ``.ndpi``, ``.mrxs``,
            ``.scn``, ``.bif`` and ``.vms`` with the extra ``slides``), an array (H, W) or (H, W, C) of NumPy, Dask,
            Zarr or HDF5, or an `Image`. A source is returned as it is.
        channel, z, t, series, pixel_size: as in `read_image`; ``pixel_size`` is that of the full size.
        level: a smaller copy in a pyramid, as an image of its own: sizes and positions are in its pixels.

    Returns:
        An `ImageSource`: ``image_hw``, ``channels``, ``dtype`` (uint8, uint16 or float32 of every region, by the type
        in the file: integers of other types are float32), ``pixel_size_um``, ``levels``, ``tile_hw``, ``notes``,
        ``read(y0, x0, h, w, level=0)``, ``describe()`` and ``fingerprint()``. It can be pickled and read by threads.

    Raises:
        InputError: as `read_image`, or an extra is not installed. ``read`` raises `FormatError` that names a tile which
            cannot be decoded, and `InputError` if the file changed.
        UsageError: a choice does not exist, or the object is not an image.

    Example:
        >>> import cellwright as cw, numpy as np, tifffile
        >>> pixels = np.zeros((3000, 4000), np.uint8)
        >>> tifffile.imwrite("large.tif", pixels, tile=(256, 256), compression="deflate", resolution=(20000, 20000),
        ...                  resolutionunit="centimeter")
        >>> source = cw.open_image("large.tif")
        >>> print(source.describe())
        size: 3000 x 4000 px, uint8, 1.5 x 2 mm
        channels: 1 (grey)
        pixel size: 0.5 um
        levels: 0: 3000 x 4000
        stored as: tiles of 256 x 256, DEFLATE
        >>> source.read(y0=512, x0=1024, h=256, w=512)
        Image(256 x 512, uint8, 1 channel (grey), 0.5 um/px, large.tif)
    """
    from cellwright.data.images.source import open_image as open_

    return open_(image, channel=channel, z=z, t=t, series=series, pixel_size=pixel_size, level=level)


def read_dataset(  # noqa: PLR0913 - how annotations are read
    path: Path | str,
    *,
    format: str | Format | None = None,  # noqa: A002 - the name of the option
    images: Path | str | Dataset | None = None,
    require_images: bool = True,
    foreground: Literal["split", "refuse"] | None = None,
    void: int | None = None,
    no_objects: bool = False,
    prefer: Prefer | None = None,
    reading: Reading | None = None,
) -> Dataset:
    """Read annotated images: a dataset folder, a prediction folder, or any known annotation format.

    Samples are listed now; their objects are read when needed.

    Args:
        path: a folder or a file.
        format: name of the format (``docs/formats.md``), or a `Format` of your own; None detects it.
        images: where the images are, if not beside their annotations: a folder, an image file, or a dataset. For a
            dataset whose images were moved, their new folder.
        require_images: False also reads objects whose image files are missing.
        prefer: which file of an image in a prediction folder to read if several were edited differently: "masks",
            "rois", "geojson" or "json".
        foreground: for masks that only separate foreground from background: "split" makes each connected part an
            object; by default, such masks raise an error.
        void: pixel value of label images that is neither an object nor background; it becomes an ignored region.
        no_objects: True also reads images without annotations, as images without objects.
        reading: which channel, plane, time point and image of each file to use; the dataset records it for training,
            evaluation and so on.

    Of a prediction folder, the files that were edited are read instead of ``predictions.json``, and ``notes`` of the
    dataset name them.

    Returns:
        A `Dataset`, which is empty only if the source has no images. Its ``notes`` say what was assumed or left out.

    Raises:
        InputError: the path does not exist, no format or several formats match, or there are images without
            annotations.
        FormatError: the content of a file is not what its format requires.
        UsageError: the format name is unknown.

    Example:
        >>> import cellwright as cw, numpy as np, tifffile
        >>> labels = np.zeros((48, 64), np.uint16)
        >>> labels[4:12, 6:20] = 1
        >>> tifffile.imwrite("a.tif", np.zeros((48, 64), np.uint8))
        >>> tifffile.imwrite("a_masks.tif", labels)
        >>> dataset = cw.read_dataset(".")
        >>> dataset[0].id, dataset.class_names
        ('a', ('cell',))
        >>> len(dataset[0].read_instances())
        1
    """
    from cellwright.api.sources import find_images_option
    from cellwright.data.formats import ReadOptions
    from cellwright.data.formats import read_dataset as read

    options = ReadOptions(
        images=find_images_option(Path(images)) if isinstance(images, str | Path) else images,
        require_images=require_images,
        foreground=foreground,
        void=void,
        no_objects=no_objects,
        prefer=prefer,
        series=None if reading is None else reading.series,
    )
    dataset = read(Path(path), options, format=format)
    return dataset if reading is None else reading.recorded_in(dataset)


def read_annotations(
    path: Path,
    reading: Reading | None = None,
    screen: ProgressReporter = SILENT,
    *,
    format: str | None = None,  # noqa: A002 - as for `read_dataset`
    no_objects: bool = False,
) -> Dataset:
    """A dataset; of a prediction folder, the objects that reach the score threshold, as annotations.

    reading, format: as for `read_dataset`. screen: is told what was assumed and skipped. no_objects: also read images
    without annotations.
    """
    from cellwright.data.formats.predictions import as_annotations

    dataset = as_annotations(read_dataset(path, reading=reading, format=format, no_objects=no_objects))
    for line in summarise(dataset.notes):
        screen.note(line)
    return dataset


def images_only_note(dataset: Dataset) -> list[str]:
    """A line that says so if no annotations were found beside the images; otherwise none."""
    if dataset.info.get("format") != "image_folder":
        return []
    return [f"{count(len(dataset), 'image')} without annotations that cellwright recognises"]


def read_instances(
    path: Path | str, *, foreground: Literal["split", "refuse"] | None = None, void: int | None = None
) -> Instances:
    """Read the objects of one image: a label image (``.tif``, ``.png``), or a source with exactly one image.

    Of a prediction folder, these are the objects that reach its score threshold.

    Args:
        path: the file or source.
        foreground: "split" makes each connected part of a foreground or class mask an object. By default, files that
            are no label images raise an error.
        void: pixel value that is neither an object nor background; it becomes an ignored region.

    Raises:
        InputError: the file is missing, cannot be read, or is a mask or a picture rather than a label image.
        UsageError: the source has no image, or several.

    Example:
        >>> import cellwright as cw, numpy as np, tifffile
        >>> labels = np.zeros((48, 64), np.uint16)
        >>> labels[4:12, 6:20] = 1
        >>> labels[20:30, 30:40] = 2
        >>> tifffile.imwrite("cells_masks.tif", labels)
        >>> cw.read_instances("cells_masks.tif").ids
        array([1, 2])
    """
    path = Path(path)
    if is_label_image(path):
        from cellwright.data.formats.label_io import read_raster
        from cellwright.data.formats.label_kinds import single_image

        return single_image(read_raster(path), path, foreground=foreground, void=void)
    from cellwright.evaluation.pairing import above_threshold

    dataset = above_threshold(read_dataset(path, require_images=False, foreground=foreground, void=void))
    if len(dataset) != 1:
        raise UsageError(
            "expected the objects of exactly one image",
            where=path,
            got=count(len(dataset), "image"),
            remedy="use cellwright.read_dataset",
        )
    return dataset[0].read_instances()


def is_label_image(path: Path) -> bool:
    """Whether the name of a file is that of a label image, or of a mask, of one image."""
    from cellwright.data.formats.label_io import LABEL_SUFFIXES, LOSSY_SUFFIXES

    return plain_suffix(path) in (*LABEL_SUFFIXES, *LOSSY_SUFFIXES)


def is_dataset(path: Path) -> bool:
    """Whether ``path`` is a dataset folder (or its ``dataset.json``)."""
    return path.name == DATASET_FILE or (path / DATASET_FILE).is_file()


def of_split(dataset: Dataset, split: str | None) -> Dataset:
    """The samples of ``split``; all of them for None."""
    return dataset if split is None else dataset.with_split(split)
