"""``measure``: one table of all objects of a prediction; and `measure` in Python, one table per image."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import KW_ONLY, dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, overload

import numpy as np
from cyclopts import Parameter

from cellwright.api.inputs import ImageLike, ObjectsLike, as_images, as_instances_list
from cellwright.api.outputs import FileOutput
from cellwright.api.shared_options import FormatName
from cellwright.core.dataset import Dataset, Sample
from cellwright.core.distance import Distance
from cellwright.core.errors import InputError, UsageError
from cellwright.core.instances import Instances
from cellwright.core.progress import SILENT, ProgressReporter
from cellwright.core.result_folders import is_job_folder
from cellwright.core.table import frame_csv
from cellwright.core.text import count, listed
from cellwright.data.formats.contract import Prefer
from cellwright.data.images.calibration import PixelSize, as_pixel_size
from cellwright.data.images.channels import select_channels
from cellwright.data.images.reading import Reading
from cellwright.data.images.tiff import Plane

if TYPE_CHECKING:
    import pandas as pd

    from cellwright.core.image import Image
    from cellwright.data.images.channels import ChannelChoice
    from cellwright.measurement.cells import CellPairs


# Larger images are read part by part.
LARGE_PX = 40_000_000


@Parameter(name="*")
@dataclass(frozen=True)
class MeasurePlan:
    """Measure size, shape and intensities of all objects in one table."""

    predictions: Path
    """A prediction folder, a tile job, label images or anything else that `data convert` reads; the cells, if there are
    `nuclei`."""
    _: KW_ONLY
    format: FormatName = None
    images: Path | None = None
    """Folder or dataset of the images to measure (default: those of the prediction)."""
    channel: tuple[str, ...] = ()
    """Name or number of the channels to measure (default: all)."""
    ring: int | None = None
    """Measure the background of each channel in a ring of this width around each object, pixels."""
    nuclei: Path | None = None
    """The nuclei of the same images: nucleus, cell and cytoplasm in one table. A nucleus belongs to the cell that has
    most of it, at least half."""
    expand: str | None = None
    """Measure cells too: the objects, which are nuclei, with the background within this distance, such as 5um or 8px
    (default: as predicted; 0: the objects alone)."""
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
    output = FileOutput(plan.out, inputs=inputs, overwrite=plan.overwrite, suffixes=(".csv",))
    if plan.ring is not None and plan.ring < 1:
        raise UsageError("invalid `ring`", got=plan.ring, expected="at least 1 pixel")
    dataset, failures = _read_objects(plan, plan.predictions, screen)
    cells = _CellPlan.of(plan, dataset, screen)
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
    tables = [
        measure_sample(sample, dataset, plan, cells) for sample in screen.track(dataset, "measuring", len(dataset))
    ]
    table = pd.concat(tables, ignore_index=True) if tables else pd.DataFrame()

    with output.write() as folder:
        write_text(folder / plan.out.name, frame_csv(table, float_format="%.7g"))
    for line in () if cells is None else cells.notes():
        screen.note(line)
    if output.is_complete:
        screen.note(output.text)
    return None if dry_run else Measured(table, len(dataset), len(missing), failures)


def _read_objects(plan: MeasurePlan, path: Path, screen: ProgressReporter) -> tuple[Dataset, tuple[InputError, ...]]:
    """The objects at a path, and why images were skipped."""
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
        no_objects=path == plan.predictions,
        series=plan.series,
        track=screen.track,
    )
    dataset, failures = without_conflicts(
        above_threshold(read(path, options, format=plan.format if path == plan.predictions else None))
    )
    if failures and not len(dataset):
        raise failures[0]
    for line in summarise(dataset.notes):
        screen.note(line)
    return dataset, tuple(failures)


def measure_sample(sample: Sample, dataset: Dataset, plan: MeasurePlan, cells: _CellPlan | None = None) -> pd.DataFrame:
    """The rows of one image, with the columns image, label, class and score first; ignored regions are no objects."""
    from cellwright.measurement.cells import measure_pairs

    objects = sample.read_instances()
    objects = objects[~objects.ignore]
    names = dataset.class_names if cells is None else cells.class_names
    measure, size = _measure_of(sample, dataset, plan, names)
    if cells is None:
        table = measure(objects, plan.ring)
    else:
        pairs = cells.pairs(sample, objects, size)
        table = measure_pairs(pairs, lambda one: measure(one, None), lambda one: measure(one, plan.ring))
    table = table.reset_index()
    table.insert(0, "image", [sample.id] * len(table))
    return table


def _measure_of(
    sample: Sample, dataset: Dataset, plan: MeasurePlan, names: Sequence[str]
) -> tuple[Callable[[Instances, int | None], pd.DataFrame], PixelSize | None]:
    """How objects of an image are measured, given the width of a ring; and the pixel size."""
    from cellwright.measurement.table import measure_in_parts, measure_instances

    size = as_pixel_size(plan.pixel_size)
    given = {"class_names": names, "pixel_size_um": size}
    if sample.image_path is None:
        given["pixel_size_um"] = size = size or sample.pixel_size_um
        return lambda cells, ring: measure_instances(cells, ring_px=ring, **given), size
    chosen = Reading(plan.channel, z=plan.z, t=plan.t, series=plan.series)
    reading = chosen.over(Reading.recorded(dataset.info)).of(sample)
    if math.prod(sample.image_hw) > LARGE_PX:
        source = reading.open(sample.image_path, chosen=bool(plan.channel))
        return lambda cells, ring: measure_in_parts(cells, source, ring_px=ring, **given), size or source.pixel_size_um
    image = reading.read(sample.image_path)
    image = select_channels(image, plan.channel) if plan.channel else image
    return lambda cells, ring: measure_instances(cells, image, ring_px=ring, **given), size or image.pixel_size_um


@dataclass(frozen=True, eq=False)
class _CellPlan:
    """Where cells and nuclei of each image come from.

    nuclei: by the id of the sample of cells, if there are two sets; otherwise the objects are expanded. edited: cells
    that were corrected in the prediction folder. written: those that were not, nor were their nuclei. class_names: of
    both. counts: of what users should know, so far.
    """

    class_names: tuple[str, ...]
    expand: str | None = None
    nuclei: Mapping[str, Sample] = field(default_factory=dict)
    class_of_nuclei: tuple[int, ...] = ()
    edited: frozenset[str] = frozenset()
    written: Mapping[str, Callable[[], Instances]] = field(default_factory=dict)
    counts: dict[tuple[str, str], int] = field(default_factory=dict)

    @staticmethod
    def of(plan: MeasurePlan, dataset: Dataset, screen: ProgressReporter) -> _CellPlan | None:
        """None if objects are measured alone. Raises `InputError` if the images of two sets are not the same."""
        if plan.nuclei is not None:
            if plan.expand is not None:
                raise UsageError("`nuclei` and `expand` exclude each other", remedy="omit one of them")
            return _CellPlan._of_two(plan, plan.nuclei, dataset, screen)
        if plan.expand is not None:
            distance = Distance.of(plan.expand)
            return _CellPlan(dataset.class_names, str(distance)) if distance.value else None
        recorded = dataset.info.get("expand") if dataset.info.get("format") == "predictions" else None
        if not isinstance(recorded, str):
            return None
        screen.note(f"cells: nuclei expanded by {Distance.of(recorded)}, as predicted")
        return _CellPlan._of_folder(plan.predictions, dataset, str(Distance.of(recorded)), screen)

    @staticmethod
    def _of_folder(folder: Path, dataset: Dataset, expand: str, screen: ProgressReporter) -> _CellPlan:
        from cellwright.data.formats.predictions import EDITED, CellFile

        edited_nuclei = {note.where for note in dataset.notes if note.kind == EDITED}
        files = {sample.id: CellFile.of(folder, dataset, sample) for sample in dataset}
        edited = {name: file for name, file in files.items() if file is not None and file.is_edited}
        for file in edited.values():
            screen.note(f"{file.path.name} was edited, so its cells were measured")
        if again := sorted({sample.id for sample in dataset} & edited_nuclei - edited.keys()):
            screen.note(f"nuclei were edited, so their cells were made again: {listed(again)}")
        for name, file in files.items():
            if file is not None and file.other is not None and name not in edited_nuclei:
                text = f"the cells in {file.other.name} were edited, but not measured: {file.path.name} was read"
                screen.note(f"warning: {text}; edit the cells there")
        kept = {name: file for name, file in files.items() if file is not None and name not in edited_nuclei}
        return _CellPlan(dataset.class_names, expand, edited=frozenset(edited), written=kept | edited)

    @staticmethod
    def _of_two(plan: MeasurePlan, path: Path, cells: Dataset, screen: ProgressReporter) -> _CellPlan:
        from cellwright.evaluation.pairing import only_pair, partners, shown_ids

        nuclei, failures = _read_objects(plan, path, screen)
        if failures:
            raise failures[0]
        nuclei, notes = only_pair(nuclei, cells)
        for note in notes:
            screen.note(note)
        paired = partners(cells, nuclei)
        for one, others, where, what in (
            (paired, cells, path, "nuclei"),
            (partners(nuclei, cells), nuclei, plan.predictions, "cells"),
        ):
            if missing := [sample.id for sample, other in zip(others, one, strict=True) if other is None]:
                problem = f"{len(missing)} of {count(len(others), 'image')} have no {what}"
                remedy = "give the nuclei and the cells of the same images, with the same names"
                raise InputError(problem, where=where, got=f"none for {shown_ids(missing)}", remedy=remedy)
        names = (*cells.class_names, *(name for name in nuclei.class_names if name not in cells.class_names))
        of_cells = {sample.id: other for sample, other in zip(cells, paired, strict=True) if other is not None}
        return _CellPlan(names, nuclei=of_cells, class_of_nuclei=tuple(map(names.index, nuclei.class_names)))

    def pairs(self, sample: Sample, objects: Instances, pixel_size_um: PixelSize | None) -> CellPairs:
        """Cells and nuclei of an image. objects: of the sample, without regions."""
        from cellwright.measurement.cells import match, same_ids, with_ids

        if sample.id in self.nuclei:
            nuclei = self.nuclei[sample.id].read_instances()
            nuclei = nuclei[~nuclei.ignore]
            if nuclei.image_hw != objects.image_hw:
                got, expected = (f"{one[0]} x {one[1]} (height x width)" for one in (nuclei.image_hw, objects.image_hw))
                problem = "nuclei and cells are of images of different sizes"
                raise InputError(problem, where=sample.id, got=f"nuclei of {got}", expected=expected)
            nuclei = replace(nuclei, class_ids=np.array(self.class_of_nuclei, np.int64)[nuclei.class_ids])
            pairs = match(nuclei, objects)
        elif sample.id in self.edited:
            pairs = match(objects, self.written[sample.id]())
        else:
            assert self.expand is not None
            expanded = with_ids(objects, self.written[sample.id]()) if sample.id in self.written else None
            if expanded is None:
                expanded = objects.expand(self.expand, pixel_size=pixel_size_um, where=sample.image_path or sample.id)
            pairs = replace(same_ids(objects, expanded), is_matched=bool(self.edited))
        for n, noun, text in pairs.odd:
            self.counts[noun, text] = self.counts.get((noun, text), 0) + n
        return pairs

    def notes(self) -> list[str]:
        """What was found in all images, a sentence each."""
        return [f"{count(n, noun)} {text}" for (noun, text), n in self.counts.items() if n]


@overload
def measure(
    cells: ObjectsLike,
    image: ImageLike | None = None,
    *,
    channel: ChannelChoice | None = None,
    class_names: Sequence[str] | None = None,
    pixel_size: float | Sequence[float] | None = None,
    ring: int | None = None,
    nuclei: ObjectsLike | None = None,
    expand: float | str | None = None,
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
    nuclei: Iterable[ObjectsLike] | None = None,
    expand: float | str | None = None,
) -> list[pd.DataFrame]: ...
def measure(cells, image=None, *, channel=None, class_names=None, pixel_size=None, ring=None, nuclei=None, expand=None):
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
        nuclei: the nuclei of the cells, like ``cells``: both are measured, and the cytoplasm, which is the cell without
            the nucleus. A nucleus belongs to the cell that has most of it, at least half.
        expand: ``cells`` are nuclei, and the cells are these with the background within this distance, pixels or text
            such as "5um"; see `Instances.expand`. None and 0 measure ``cells`` alone.

    Returns:
        A pandas table with one row per object and the ids of the objects as index "label"; for a list, a list of
        tables. Columns: class, score (NaN without scores), area_px, centroid_y_px, centroid_x_px,
        bbox_{x0,y0,x1,y1}_px, touches_border, equivalent_diameter_px, perimeter_px, major_axis_px, minor_axis_px,
        eccentricity, orientation_deg, solidity, circularity; with an image intensity_{mean,min,max,std}_CHANNEL, with
        ``ring`` also ring_area_px and ring_mean_CHANNEL; with a pixel size area_um2 and equivalent_diameter_um.
        Definitions: `cellwright.measurement.table`. Without objects, the table has all columns and no rows.
        With ``nuclei`` or ``expand`` these begin with nucleus_ and cell_, and there are the area and the intensities
        of the cytoplasm, such as cytoplasm_intensity_mean_CHANNEL. With ``nuclei``, n_nuclei, nucleus_label (of the
        largest one, 0 for none) and has_cell say what was found: several nuclei of a cell are measured together, a
        nucleus without a cell has a row of its own, and what does not exist is NaN.

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
    from cellwright.measurement.cells import measure_with_cells
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
    instances = [objects[~objects.ignore] for objects in instances]  # regions are no objects
    given = {"class_names": class_names, "pixel_size_um": size, "ring_px": ring}
    if nuclei is None and (expand is None or not Distance.of(expand).value):
        tables = [measure_instances(*pair, **given) for pair in zip(instances, images, strict=True)]
    else:
        pairs = _pairs(instances, images, nuclei, expand, size)
        tables = [measure_with_cells(*pair, **given) for pair in zip(pairs, images, strict=True)]
    return tables[0] if single else tables


def _pairs(
    cells: Sequence[Instances],
    images: Sequence[Image | None],
    nuclei: ObjectsLike | Iterable[ObjectsLike] | None,
    expand: float | str | None,
    pixel_size_um: PixelSize | None,
) -> list[CellPairs]:
    from cellwright.measurement.cells import match, same_ids

    if nuclei is None:
        assert expand is not None
        sizes = [pixel_size_um or (None if image is None else image.pixel_size_um) for image in images]
        return [same_ids(one, one.expand(expand, pixel_size=size)) for one, size in zip(cells, sizes, strict=True)]
    if expand is not None:
        raise UsageError("`nuclei` and `expand` exclude each other", remedy="omit one of them")
    of_cells = as_instances_list(nuclei)[0]
    if len(of_cells) != len(cells):
        got, expected = f"nuclei of {count(len(of_cells), 'image')}", count(len(cells), "image")
        raise InputError("nuclei and cells differ in number", got=got, expected=expected)
    return [match(one[~one.ignore], other) for one, other in zip(of_cells, cells, strict=True)]
