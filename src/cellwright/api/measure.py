"""``measure``: one table of all objects of a prediction; and `measure` in Python, one table per image."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import KW_ONLY, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, overload

from cyclopts import Parameter

from cellwright.api.inputs import ImageLike, ObjectsLike, as_images, as_instances_list
from cellwright.api.outputs import FileOutput
from cellwright.api.shared_options import FormatName
from cellwright.core.dataset import Dataset, Sample
from cellwright.core.errors import InputError, UsageError
from cellwright.core.progress import SILENT, ProgressReporter
from cellwright.core.result_folders import is_job_folder
from cellwright.core.table import frame_csv
from cellwright.core.text import count
from cellwright.data.formats.contract import Prefer
from cellwright.data.images.calibration import as_pixel_size
from cellwright.data.images.channels import select_channels
from cellwright.data.images.reading import Reading
from cellwright.data.images.tiff import Plane

if TYPE_CHECKING:
    import pandas as pd

    from cellwright.data.images.channels import ChannelChoice


# Larger images are read part by part.
LARGE_PX = 40_000_000


@Parameter(name="*")
@dataclass(frozen=True)
class MeasurePlan:
    """Measure size, shape and intensities of all objects in one table."""

    predictions: Path
    """A prediction folder, a tile job, label images or anything else that `data convert` reads."""
    _: KW_ONLY
    format: FormatName = None
    images: Path | None = None
    """Folder or dataset of the images to measure (default: those of the prediction)."""
    channel: tuple[str, ...] = ()
    """Name or number of the channels to measure (default: all)."""
    ring: int | None = None
    """Measure the background of each channel in a ring of this width around each object, pixels."""
    z: Plane | None = None
    """Plane of stacks, counted from 0, or max or mean (default: as predicted)."""
    t: int | None = None
    """Time point, counted from 0 (default: as predicted)."""
    series: str | None = None
    """Number or name of one image in a file of several (default: as predicted)."""
    pixel_size: float | None = None
    """Microns per pixel (default: as the file says)."""
    prefer: Prefer | None = None
    """Which file of an image to read if several in a prediction folder were edited differently."""
    out: Path = Path("work/measurements.csv")
    """CSV file to write."""
    overwrite: bool = False
    """Replace an existing file."""


@dataclass(frozen=True, eq=False)
class Measured:
    """The table of all objects, and the number of images, of which ``n_missing`` had no image file.

    failures: why images were skipped.
    """

    table: pd.DataFrame
    n_images: int
    n_missing: int
    failures: tuple[InputError, ...] = ()


def run(plan: MeasurePlan, screen: ProgressReporter = SILENT, *, dry_run: bool = False) -> Measured | None:
    """Measure all objects and write the table ``plan.out``; None after a dry run.

    Objects without an image file are measured by shape only. Raises `OutputError` if the file exists, `UsageError` for
    another suffix, a channel or plane that does not exist, or an option that needs images where there are none, and
    `InputError` for what cannot be read.
    """
    import pandas as pd

    from cellwright.core.files import write_text

    inputs = [path for path in (plan.predictions, plan.images) if path is not None]
    output = FileOutput(plan.out, inputs=inputs, overwrite=plan.overwrite)
    if plan.out.suffix.lower() != ".csv":
        raise UsageError(
            "measurements are written as a table", where="`out`", got=plan.out.name, expected="a .csv file"
        )
    if plan.ring is not None and plan.ring < 1:
        raise UsageError("invalid `ring`", got=plan.ring, expected="at least 1 pixel")
    dataset, failures = _read_objects(plan, screen)
    missing = [sample for sample in dataset if sample.image_path is None]
    if missing and len(missing) == len(dataset) and (plan.ring is not None or plan.channel):
        got, remedy = f"{count(len(missing), 'image')} without a file", "name the folder of the images with `images`"
        raise UsageError("intensities need the images", where=plan.predictions, got=got, remedy=remedy)
    if not output.exists:
        screen.note(f"{count(len(dataset), 'image')}: will write {plan.out}")
    if missing:
        without = f"{count(len(missing), 'image')} without a file, such as {missing[0].id}"
        screen.note(f"{without}: no intensities were measured; name the folder of the images with `images`")
    if is_job_folder(plan.predictions) and not (plan.images or plan.channel or plan.ring) and not dataset.notes:
        screen.note(f"the job has these measurements already: {plan.predictions}/objects.parquet or objects.csv.gz")
    if dry_run and not output.exists:
        return None
    tables = [measure_sample(sample, dataset, plan) for sample in screen.track(dataset, "measuring", len(dataset))]
    table = pd.concat(tables, ignore_index=True) if tables else pd.DataFrame()

    with output.write() as folder:
        write_text(folder / plan.out.name, frame_csv(table, float_format="%.7g"))
    if output.is_complete:
        screen.note(output.text)
    return None if dry_run else Measured(table, len(dataset), len(missing), failures)


def _read_objects(plan: MeasurePlan, screen: ProgressReporter) -> tuple[Dataset, tuple[InputError, ...]]:
    """The objects to measure, and why images were skipped."""
    from cellwright.api.sources import find_images_option
    from cellwright.core.notes import summarise
    from cellwright.data.formats import ReadOptions
    from cellwright.data.formats import read_dataset as read
    from cellwright.data.formats.predictions import without_conflicts
    from cellwright.evaluation.pairing import above_threshold

    images = None if plan.images is None else find_images_option(plan.images, screen.track)
    options = ReadOptions(
        images=images,
        require_images=False,
        prefer=plan.prefer,
        no_objects=True,
        series=plan.series,
        track=screen.track,
    )
    dataset, failures = without_conflicts(above_threshold(read(plan.predictions, options, format=plan.format)))
    if failures and not len(dataset):
        raise failures[0]
    for line in summarise(dataset.notes):
        screen.note(line)
    return dataset, tuple(failures)


def measure_sample(sample: Sample, dataset: Dataset, plan: MeasurePlan) -> pd.DataFrame:
    """The rows of one image, with the columns image, label, class and score first; ignored regions are no objects."""
    from cellwright.measurement.table import measure_in_parts, measure_instances

    cells, names, size = sample.read_instances(), dataset.class_names, as_pixel_size(plan.pixel_size)
    cells = cells[~cells.ignore]
    if sample.image_path is None:
        size = size or sample.pixel_size_um
        table = measure_instances(cells, class_names=names, pixel_size_um=size, ring_px=plan.ring)
    else:
        reading = Reading(plan.channel, z=plan.z, t=plan.t, series=plan.series).over(Reading.recorded(dataset.info))
        if math.prod(sample.image_hw) > LARGE_PX:
            source = reading.open(sample.image_path, chosen=bool(plan.channel))
            table = measure_in_parts(cells, source, class_names=names, pixel_size_um=size, ring_px=plan.ring)
        else:
            image = reading.read(sample.image_path)
            image = select_channels(image, plan.channel) if plan.channel else image
            table = measure_instances(cells, image, class_names=names, pixel_size_um=size, ring_px=plan.ring)
    table = table.reset_index()
    table.insert(0, "image", [sample.id] * len(table))
    return table


@overload
def measure(
    cells: ObjectsLike,
    image: ImageLike | None = None,
    *,
    channel: ChannelChoice | None = None,
    class_names: Sequence[str] | None = None,
    pixel_size: float | Sequence[float] | None = None,
    ring: int | None = None,
) -> pd.DataFrame: ...
@overload
def measure(
    cells: Iterable[ObjectsLike],
    image: Iterable[ImageLike] | None = None,
    *,
    channel: ChannelChoice | None = None,
    class_names: Sequence[str] | None = None,
    pixel_size: float | Sequence[float] | None = None,
    ring: int | None = None,
) -> list[pd.DataFrame]: ...
def measure(cells, image=None, *, channel=None, class_names=None, pixel_size=None, ring=None):
    """Measure size, shape and, with an image, intensities of objects.

    Args:
        cells: the objects of one image: `Instances`, a label array (H, W) of any integer type with 0 as background, or
            the path of a label image. For several images, a list of these.
        image: the image in which intensities are measured, an `Image`, an array (H, W) or (H, W, C),
            or a path. None measures no intensities. For several images, a list of these.
        channel: names or indices of the channels to measure, one or a list; None: all.
        class_names: names of the classes 0..K-1, for the column "class"; None: the class ids.
        pixel_size: microns per pixel, one number or (y, x); None takes that of the image.
        ring: width in pixels of a ring around each object, outside of all objects, in which the background of each
            channel is measured; None measures none.

    Returns:
        A pandas table with one row per object and the ids of the objects as index "label"; for a list, a list of
        tables. Columns: class, score (NaN without scores), area_px, centroid_y_px, centroid_x_px,
        bbox_{x0,y0,x1,y1}_px, touches_border, equivalent_diameter_px, perimeter_px, major_axis_px, minor_axis_px,
        eccentricity, orientation_deg, solidity, circularity; with an image intensity_{mean,min,max,std}_CHANNEL, with
        ``ring`` also ring_area_px and ring_mean_CHANNEL; with a pixel size area_um2 and equivalent_diameter_um.
        Definitions: `cellwright.measurement.table`. Without objects, the table has all columns and no rows.

    Raises:
        InputError: image and objects differ in size or number, a class id without a name, or an array that is not a
            label array.
        UsageError: an unsupported type.

    Example:
        >>> import cellwright as cw, numpy as np
        >>> labels = np.zeros((20, 30), np.uint16)
        >>> labels[2:6, 3:8], labels[10:18, 15:25] = 4, 7
        >>> table = cw.measure(labels, image=labels * 10)
        >>> table.index.tolist(), table["area_px"].tolist(), table["intensity_mean_grey"].tolist()
        ([4, 7], [20, 80], [40.0, 70.0])
        >>> table.loc[7, ["centroid_y_px", "centroid_x_px"]].tolist()
        [14.0, 20.0]
    """
    from cellwright.measurement.table import measure_instances

    instances, single = as_instances_list(cells)
    images = [None] * len(instances) if image is None else as_images(image)[0]
    if len(images) != len(instances):
        raise InputError(
            "objects and images differ in number",
            got=count(len(images), "image"),
            expected=f"{count(len(instances), 'image')}, one for each entry of `cells`",
        )
    if channel is not None:
        if image is None:
            raise UsageError("intensities need an image", got=f"`channel={channel!r}`", remedy="give it as `image`")
        images = [select_channels(of_cells, channel) for of_cells in images if of_cells is not None]
    size = as_pixel_size(pixel_size)
    pairs = zip(instances, images, strict=True)
    pairs = ((objects[~objects.ignore], of_cells) for objects, of_cells in pairs)  # regions are no objects
    tables = [measure_instances(*pair, class_names=class_names, pixel_size_um=size, ring_px=ring) for pair in pairs]
    return tables[0] if single else tables
