"""``predict``: images and a model in, a prediction folder out."""

from __future__ import annotations

import dataclasses
import warnings
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import KW_ONLY, dataclass
from functools import partial
from pathlib import Path
from typing import Annotated, Any, NoReturn

import numpy as np
import yaml
from cyclopts import Group, Parameter

from cellwright.api.models import (
    DEFAULT_MODEL,
    Model,
    ModelLike,
    as_model,
    ensemble,
    identity_of,
    load_model,
    made_by,
)
from cellwright.api.predict_tiles import (
    MEMORY_SHARE,
    TileRequest,
    can_tile,
    core_px_of,
    run_job,
    sendable,
    shard_of,
    whole_bytes,
)
from cellwright.api.read import is_dataset, of_split, read_dataset
from cellwright.api.shared_options import PART, EachPlane, EachTime, Series
from cellwright.config import recipe as recipes
from cellwright.core.dataset import Dataset
from cellwright.core.distance import Distance
from cellwright.core.errors import InputError, UsageError
from cellwright.core.image import Image
from cellwright.core.instances import Instances
from cellwright.core.memory import available_bytes
from cellwright.core.notes import Note, summarise
from cellwright.core.progress import SILENT, ProgressReporter
from cellwright.core.safe_yaml import parse_yaml
from cellwright.core.scores import shown_score
from cellwright.core.text import count
from cellwright.data.images.channels import ChannelChoice
from cellwright.data.images.passed_over import passed_over_note, results_note
from cellwright.data.images.reading import Reading
from cellwright.data.images.source import ImageSource
from cellwright.data.views import parse_views
from cellwright.prediction.backends import Backend
from cellwright.prediction.folder import FolderReport, PredictionFolder
from cellwright.prediction.fusion import FusionOptions, Method
from cellwright.prediction.image_writer import Pictures
from cellwright.prediction.job import FAILURES, MADE_BY, PREDICTIONS, SAVES, SUMMARY, Job, Save, group_failures
from cellwright.prediction.linking import check_iou
from cellwright.prediction.predictor import SegmenterPredictor
from cellwright.prediction.run_folder import Opened, predict_into, predict_shard
from cellwright.prediction.runners import Running
from cellwright.prediction.sources import (
    Source,
    Stack,
    check_choices,
    each_plane,
    naming_notes,
    read_and_choose,
    sources_of_dataset,
    sources_of_paths,
)
from cellwright.prediction.tiling.job import JobReport
from cellwright.prediction.tiling.label_writers import LabelKind, check_zarr
from cellwright.prediction.tiling.models import with_networks
from cellwright.prediction.tiling.regions import roi_words

OBJECTS = Group("Which objects are kept", sort_key=2)
VIEWS = Group("Ensembles and test-time augmentation (TTA)", sort_key=3)
RUNNING = Group("Which images, and how the job runs", sort_key=4)
LARGE = Group("Images larger than memory", sort_key=5)


@Parameter(name="*")
@dataclass(frozen=True)
class PredictPlan:
    """Segment images, or resume an interrupted prediction."""

    sources: tuple[Path, ...]
    """Images, folders of images, or a dataset."""
    _: KW_ONLY
    model: tuple[str, ...] = ("nuclei",)
    """nuclei (finds nuclei only), classical, a model folder, or a run; repeat to fuse several models (ensemble)."""
    channel: tuple[str, ...] = ()
    """Name or number of the channel to use, where there are several; "DAPI|Hoechst" is the first that exists. Repeat
    for models that take several. All channels are measured."""
    diameter: float | None = None
    """Median diameter of the objects, pixels, for models that use one such as nuclei (default: estimated per image)."""
    score: float | None = None
    """Omit objects with a lower score, 0 to 1 (default: the model's own threshold)."""
    min_area: int | None = None
    """Omit smaller objects, pixels (default: the model's own limit)."""
    save: tuple[Save, ...] = SAVES
    """Files per image: masks (label image), overlay (picture), geojson (QuPath), rois (ImageJ), measurements (CSV)."""
    out: Path = Path("work/predictions")
    """Folder to write."""
    overwrite: bool = False
    """Replace predictions that exist in the folder."""
    remove_border: Annotated[bool, Parameter(group=OBJECTS)] = False
    """Omit objects that touch the border of the image, which may be cut off."""
    smooth: Annotated[bool, Parameter(group=OBJECTS)] = False
    """Smooth the outlines of objects."""
    fill_holes: Annotated[bool, Parameter(group=OBJECTS)] = False
    """Fill the holes in objects."""
    expand: Annotated[str | None, Parameter(group=OBJECTS)] = None
    """Approximate cells: the nuclei with the background within this distance, such as 5um or 8px (also written:
    x_cell_masks.tif, and nucleus, cell and cytoplasm of each object in one table)."""
    no_candidates: Annotated[bool, Parameter(group=OBJECTS)] = False
    """Write no uncertain objects, below the score threshold, to predictions.json: an R-CNN is faster, but average
    precision needs them."""
    ring: Annotated[int | None, Parameter(group=OBJECTS)] = None
    """Measure the background of each channel in a ring of this width around each object, pixels."""
    z: EachPlane = None
    t: EachTime = None
    stitch: Annotated[float | None, Parameter(group=PART)] = None
    """Join objects of consecutive planes, and link those of consecutive time points, from this overlap (IoU) on, such
    as 0.25: one number through the stack (x_masks.tif, x_objects.csv), and tracks (x_tracks.csv, x_ctc)."""
    series: Series = None
    pixel_size: Annotated[tuple[float, ...] | None, Parameter(group=PART)] = None
    """Microns per pixel of the full size, one number or y,x (default: as the file says)."""
    level: Annotated[int | None, Parameter(group=LARGE)] = None
    """Predict a smaller copy in the pyramid of the image; results are in its pixels (default: 0, the full size)."""
    max_objects: Annotated[int | None, Parameter(group=OBJECTS)] = None
    """Maximum number of objects per image, best first (default: all)."""
    views: Annotated[str | None, Parameter(group=VIEWS)] = None
    """Predict each image in several orientations and sizes and merge the results: mirror, flips or turns; sizes first,
    as factors (0.8,1,1.25:flips) or short sides (400,600,800,max1600:mirror)."""
    fuse: Annotated[Method, Parameter(group=VIEWS)] = "wbf"
    """How the objects of several models are fused, at an IoU of 0.5."""
    weights: Annotated[tuple[float, ...] | None, Parameter(group=VIEWS)] = None
    """One weight per model (default: all equal)."""
    split: Annotated[str | None, Parameter(group=RUNNING)] = None
    """Only this split of a dataset."""
    device: Annotated[str, Parameter(group=RUNNING)] = "auto"
    """auto, cpu, cuda:N or mps."""
    backend: Annotated[Backend, Parameter(group=RUNNING)] = "auto"
    """What runs the network: openvino (U-Nets and Mask R-CNN, on the CPU), openvino-int8 (U-Nets prepared for it, such
    as nuclei: about twice as fast, masks differ slightly), openvino-bf16 (any of these on processors that have bf16:
    nearly twice as fast, masks differ slightly), torch, or auto (openvino where it can)."""
    pruned_to: Annotated[int | None, Parameter(group=RUNNING)] = None
    """Use only so many levels of a U-Net with nested skips (model.skips), 1 to its depth: faster, less accurate."""
    fail_fast: Annotated[bool, Parameter(group=RUNNING)] = False
    """Stop at the first image that fails, instead of recording it in failures.csv."""
    workers: Annotated[int, Parameter(group=RUNNING)] = 1
    """Processes that predict images, or the tiles of a large one."""
    dask: Annotated[str | None, Parameter(group=RUNNING)] = None
    """Predict on a Dask cluster: the address of its scheduler, or local."""
    shard: Annotated[str | None, Parameter(group=RUNNING)] = None
    """i/n: only every n-th image or tile. Run all n, on any machines that share the folder; the last one finishes."""
    tile: Annotated[str, Parameter(group=LARGE)] = "auto"
    """auto: tile by tile if the image does not fit into memory; none: never; a number: tiles of this side, pixels at
    the network's scale."""
    roi: Annotated[tuple[str, ...], Parameter(group=LARGE)] = ()
    """Keep only objects in this region: y0,x0,height,width in pixels, or a GeoJSON file of polygons (annotations of
    QuPath); repeat for several. Tiles without a region are skipped."""
    tissue: Annotated[str | None, Parameter(group=LARGE)] = None
    """auto: skip tiles that are only glass, beside stained tissue; none; or an image whose nonzero pixels are tissue,
    of any size (default: auto for slides with a pyramid, else none)."""
    labels: Annotated[LabelKind | None, Parameter(group=LARGE)] = None
    """tiff (BigTIFF) or zarr (OME-Zarr) for the labels of a large image (default: zarr where it is installed), or of a
    stack that is joined (default: tiff)."""


def run(
    plan: PredictPlan, reporter: ProgressReporter = SILENT, *, dry_run: bool = False
) -> FolderReport | JobReport | None:
    """Check the request, predict, and write the prediction folder; None after a dry run. The same plan resumes.

    Raises `OutputError` if the folder cannot be written, `ModelError` for a model that cannot be loaded, `InputError`
    for a path without images, and `UsageError` for an option that is out of range or not supported by the model.
    """
    members = [load_model(name, device=plan.device, backend=plan.backend) for name in plan.model]
    fusion = FusionOptions(plan.fuse, weights=plan.weights)
    model = _with_options_of(plan, ensemble(members, fusion))
    labels_of: dict[Path, set[Path]] = {}
    sources, recorded = find_sources(plan.sources, plan.split, labels_of=labels_of)
    part = {"z": plan.z, "t": plan.t, "series": plan.series, "pixel_size": plan.pixel_size, "level": plan.level}
    reading = Reading(plan.channel, **part).over(recorded)
    sources, stacks = _planes_to_predict(sources, reading, plan.stitch)
    stack_labels = _labels_of_stacks(plan.labels, plan.stitch)
    if (large := _large(plan, sources, reading, model, members)) is not None:
        source, request, why = large
        given = {"save": plan.save != SAVES, "fail_fast": plan.fail_fast, "no_candidates": plan.no_candidates}
        for name, is_given in given.items():
            if is_given:
                reporter.note(f"`{name}` is for images that are predicted whole, and has no effect on tiles")
        return run_job(
            source, model, plan.out, request, overwrite=plan.overwrite, reporter=reporter, dry_run=dry_run, why=why
        )
    job = _job(model, sources, plan.save, reading, recipe_yaml(members, fusion), members)
    job = _with_options(job, model, plan.ring, plan.split, (stacks, plan.stitch, stack_labels))
    see = partial(read_and_choose, predictor=model.predictor, reading=reading)
    running = Running(plan.workers, plan.dask, shard_of(plan.shard))
    if plan.shard is not None:
        _check_shard(plan)
    open_folder = partial(
        PredictionFolder,
        plan.out,
        job,
        pictures(model.class_names),
        see=see,
        overwrite=plan.overwrite,
        joins=plan.shard is not None,
    )
    folder = open_folder()
    notes = summarise([*_passed_over(labels_of), *naming_notes(sources)]) + stacks_found(stacks, plan.stitch, reading)
    notes += model_notes(model, members, plan.views)
    if folder.is_new:
        check_choices(sources, model.predictor, reading)
        check_expand(sources, model, reading)
    if (done := folder.describe()) is not None:
        reporter.note(done)
    if not folder.is_complete:
        for note in (_announcement(plan, len(job.sources)), *notes):
            reporter.note(note)
    if dry_run:
        return None
    opener = OpenModel.of(model, plan.device, running) if running.is_elsewhere else None
    how = {"reading": reading, "running": running, "elsewhere": opener}
    if plan.shard is None:
        report = predict_into(folder, model.filtered, **how, fail_fast=plan.fail_fast, track=reporter.track)
    else:
        report = predict_shard(plan.out, open_folder, model.filtered, **how, reporter=reporter)
    for note in report.notes:
        reporter.note(note)
    return report


def _with_options_of(plan: PredictPlan, model: Model) -> Model:
    return model.with_options(
        diameter=plan.diameter,
        views=plan.views,
        score=plan.score,
        min_area=plan.min_area,
        max_objects=plan.max_objects,
        remove_border=plan.remove_border,
        smooth=plan.smooth,
        fill_holes=plan.fill_holes,
        expand=plan.expand,
        no_candidates=plan.no_candidates,
        pruned_to=plan.pruned_to,
    )


def _check_shard(plan: PredictPlan) -> None:
    """Raise `UsageError` for options that shards do not have."""
    for name, value in (("overwrite", plan.overwrite), ("fail_fast", plan.fail_fast)):
        if value:
            problem = "shards cannot replace a result" if name == "overwrite" else "shards go on after a failure"
            remedy = "remove the old result first, or choose another `out`" if name == "overwrite" else None
            raise UsageError(problem, got=f"`shard` and `{name}`", remedy=remedy or f"omit `{name}`")


def _large(
    plan: PredictPlan, sources: Sequence[Source], reading: Reading, model: Model, members: Sequence[Model]
) -> tuple[ImageSource, TileRequest, str] | None:
    """The image to be predicted tile by tile, how, and why; None if images are predicted whole."""
    only_tiles = {"roi": plan.roi, "labels": plan.labels if plan.stitch is None else None, "level": reading.level}
    only_tiles |= {"tissue": None if plan.tissue == "none" else plan.tissue}
    asked = [name for name, value in only_tiles.items() if value]
    running = Running(plan.workers, plan.dask, shard_of(plan.shard))
    core_px = core_px_of(plan.tile)
    if plan.tile == "none" and asked:
        raise UsageError(f"`{asked[0]}` is for images that are predicted tile by tile", remedy='omit `tile="none"`')
    if plan.tile == "none":
        return None
    if len(sources) != 1 or sources[0].error is not None:
        if core_px is None and not asked:
            return None
        if len(sources) == 1 and sources[0].error is not None:
            raise sources[0].error
        _refuse_several(asked[0] if asked else "tile", len(sources))
    why = " as requested"
    is_shared = running != Running() and can_tile(model) and plan.expand is None
    if core_px is None and not asked and not is_shared:
        try:
            source = reading.of(sources[0]).open(sources[0].path)
        except (InputError, UsageError):
            return None  # it fails like any other image
        if not can_tile(model):
            return None  # if it does not fit, it fails with what to do
        needed, limit = whole_bytes(source.image_hw, model), int(MEMORY_SHARE * available_bytes())
        if needed <= limit:
            return None
        why = f" (at once it would need about {needed / 2**30:.0f} GiB; {limit / 2**30:.1f} GiB may be used)"
    request = TileRequest(
        identity_of(members),
        plan.device,
        plan.channel,
        reading.of(sources[0]).to_dict(),
        core_px,
        roi_words(plan.roi),
        plan.tissue,
        plan.ring,
        plan.labels,
        running,
    )
    path, reading = sources[0].path, reading.of(sources[0])
    return reading.open(path if plan.dask is None else path.resolve()), request, why


def check_expand(sources: Sequence[Source], model: Model, reading: Reading) -> None:
    """Raise `InputError` if cells by a distance in microns are wanted, and no image has a pixel size."""
    if model.options.expand is None:
        return
    first: InputError | None = None
    for source in sources:
        try:
            image = reading.of(source).open(source.path) if source.error is None else None
        except (InputError, UsageError):
            continue  # it fails by itself
        if image is None:
            continue
        try:
            Distance.of(model.options.expand).in_pixels(image.pixel_size_um, where=source.path)
            return
        except InputError as error:
            first = first or error
    if first is not None:
        raise first


def _refuse_several(option: str, n_images: int) -> NoReturn:
    """Raise `UsageError` for an option that several images do not have."""
    problem = f"`{option}` is for one image, which is predicted tile by tile; several are predicted whole, at full size"
    remedy = f"omit `{option}`, or predict each image in a command of its own, with its own `out`"
    raise UsageError(problem, got=count(n_images, "image"), remedy=remedy)


def predict_folder(  # noqa: PLR0913 - the options of the command
    images: str | Path | Dataset | Iterable[str | Path],
    *,
    model: ModelLike | Sequence[ModelLike] = DEFAULT_MODEL,
    out: str | Path,
    fuse: Method = "wbf",
    weights: Sequence[float] | None = None,
    split: str | None = None,
    channel: ChannelChoice | None = None,
    reading: Reading | None = None,
    stitch: float | None = None,
    labels: LabelKind | None = None,
    save: Sequence[Save] = SAVES,
    ring: int | None = None,
    overwrite: bool = False,
    fail_fast: bool = False,
    workers: int = 1,
    dask: str | None = None,
) -> Dataset:
    """Predict images into a prediction folder, as the command ``cellwright predict`` does.

    An interrupted prediction resumes when it is called again with the same arguments; images that failed are tried
    again, also with another ``channel`` or ``reading``. Complete predictions of the same images are returned as they
    are.

    Args:
        images: an image file, a folder of images (at any depth), a dataset, or a list of files and folders.
        model: a `Model`, what `load_model` takes, or a `Segmenter` of your own; several are fused (ensemble). Set the
            options of a model, such as its score threshold, with `Model.with_options`.
        out: folder to write.
        fuse, weights: how the objects of several models are fused (see `fuse`), and one weight per model.
        split: only this split of a dataset.
        channel: name or index of the channel to use, where there are several ("DAPI|Hoechst": the first that exists),
            or a list for models that take several. None: as the dataset or the model records, or what leaves no doubt.
            All channels are measured.
        reading: plane, time point and image of each file, and the pixel size. ``Reading(z="all")`` or
            ``Reading(t="all")`` predict each plane or time point as an image.
        stitch: join the objects of consecutive planes, and link those of consecutive time points, from this overlap
            (IoU) on: one number through the stack, and tracks (see `join_planes`). None: they are not joined.
        labels: "tiff" (the default) or "zarr" (OME-Zarr) for the labels of stacks that are joined.
        save: files per image: "masks" (label image), "overlay" (picture), "geojson" (QuPath), "rois" (ImageJ) and
            "measurements" (CSV).
        ring: measure the background of each channel in a ring of this width around each object, pixels.
        overwrite: replace predictions that exist in the folder.
        fail_fast: raise the error of the first image that fails. Otherwise it is recorded in failures.csv, and a
            warning is given at the end.
        workers: processes that predict images. In a script, this needs ``if __name__ == "__main__":``.
        dask: predict on a Dask cluster: the address of its scheduler, or "local".

    Returns:
        The predictions as a `Dataset`, which `evaluate` accepts; objects are read when needed. It is empty only if no
        image could be predicted.

    Raises:
        InputError: there are no images, or, with ``fail_fast``, an image cannot be used.
        ModelError: the model cannot be loaded.
        OutputError: the folder has other predictions, or other files.

    Example:
        >>> import cellwright as cw, numpy as np
        >>> class Threshold:
        ...     class_names = ("spot",)
        ...
        ...     def predict(self, images):
        ...         masks = [cw.MaskSet.from_label_map((image.data[:, :, 0] > 100).astype(int))[0] for image in images]
        ...         return [cw.Instances.from_masks(m, scores=np.full(len(m), 0.9)) for m in masks]
        >>> from PIL import Image
        >>> Image.fromarray(np.eye(32, dtype=np.uint8) * 200).save("eye.png")
        >>> predictions = cw.predict_folder("eye.png", model=Threshold(), out="predictions", save=["masks"])
        >>> len(predictions), predictions.class_names, len(predictions[0].read_instances())
        (1, ('spot',), 1)
    """
    given: Any = model
    members = [as_model(one) for one in (given if isinstance(given, list | tuple) else [given])]
    fusion = FusionOptions(fuse, weights=None if weights is None else tuple(weights))
    model = ensemble(members, fusion)
    if isinstance(images, Dataset):
        sources, recorded = sources_of_dataset(of_split(images, split)), Reading.recorded(images.info)
    else:
        paths = [images] if isinstance(images, str | Path) else images
        sources, recorded = find_sources([Path(path) for path in paths], split)
    reading = Reading(channel).over(reading or Reading()).over(recorded)
    sources, stacks = _planes_to_predict(sources, reading, stitch)
    if reading.level is not None:
        got, remedy = f"level {reading.level} in `reading`", "use predict_tiles, or predict arrays"
        raise UsageError("a level of a pyramid is predicted tile by tile", got=got, remedy=remedy)
    job = _job(model, sources, tuple(save), reading, recipe_yaml(members, fusion), members)
    job = _with_options(job, model, ring, split, (stacks, stitch, _labels_of_stacks(labels, stitch)))
    see = partial(read_and_choose, predictor=model.predictor, reading=reading)
    folder = PredictionFolder(Path(out), job, pictures(model.class_names), see=see, overwrite=overwrite)
    if folder.is_new:
        check_choices(sources, model.predictor, reading)
        check_expand(sources, model, reading)
    running = Running(workers, dask)
    report = predict_into(
        folder,
        model.filtered,
        reading=reading,
        running=running,
        elsewhere=OpenModel.of(model, "auto", running) if running.is_elsewhere else None,
        fail_fast=fail_fast,
    )
    if report.failures:
        failed = count(len(report.failures), "image")
        reasons = "; ".join(group_failures(report.failures))
        warnings.warn(f"{failed} could not be predicted: see {folder.out / FAILURES}: {reasons}", stacklevel=2)
    return read_dataset(folder.out, require_images=False)


@dataclass(frozen=True)
class OpenModel:
    """Loads a model in another process, see `OpenPredictor`. predictor: see `sendable`. threads: of a worker."""

    predictor: Any
    class_names: tuple[str, ...]
    device: str
    threads: int

    @staticmethod
    def of(model: Model, device: str, running: Running) -> OpenModel:
        """For the workers of a job."""
        return OpenModel(sendable(model.filtered, model), model.class_names, device, running.threads)

    def __call__(self) -> Opened:
        """The predictor, and how pictures are drawn."""
        if isinstance(self.predictor.predictor, SegmenterPredictor):  # which may do without torch
            return self.predictor, pictures(self.class_names)
        return with_networks(self.predictor, self.device, self.threads), pictures(self.class_names)


def find_sources(
    paths: Sequence[Path], split: str | None = None, *, labels_of: dict[Path, set[Path]] | None = None
) -> tuple[list[Source], Reading]:
    """The images of a dataset (or of one split of it), or the images among paths and in folders.

    And which part of each image is used, as the dataset records it. labels_of: see `sources_of_paths`.
    """
    if len(paths) == 1 and is_dataset(paths[0]):
        dataset = read_dataset(paths[0])
        return sources_of_dataset(of_split(dataset, split)), Reading.recorded(dataset.info)
    if split is not None:
        remedy = "give a dataset folder, or omit `split`"
        raise UsageError("only a dataset has splits", got=f'`split="{split}"`', remedy=remedy)
    return sources_of_paths(paths, labels_of=labels_of), Reading()


def _job(
    model: Model,
    sources: Sequence[Source],
    save: tuple[Save, ...],
    reading: Reading,
    recipe: str,
    members: Sequence[Model],
) -> Job:
    """The job of predicting with a model; ``recipe`` and ``members`` are those of an ensemble or of the model alone."""
    return Job(
        sources=tuple(sources),
        class_names=model.class_names,
        recipe_yaml=recipe,
        model=identity_of(members),
        options=model.options,
        reading=reading.to_dict(),
        predicting={"diameter": model.diameter, "views": model.views, "pruned_to": model.pruned_to},
        save=save,
        info=model.seen,
        own=model.own_options,
    )


def _with_options(
    job: Job,
    model: Model,
    ring: int | None,
    split: str | None,
    stacks: tuple[Sequence[Stack], float | None, LabelKind] = ((), None, "tiff"),
) -> Job:
    """The job with further options, and the record of how it is made. stacks: how they are joined, and their labels."""
    options = {**job.reading, "save": None if job.save == SAVES else list(job.save), "ring": ring, "split": split}
    info = {
        **job.info,
        MADE_BY: made_by(model, options | {"stitch": stacks[1], "labels": stacks[2] if stacks[2] != "tiff" else None}),
    }
    joined = {"stacks": tuple(stacks[0]), "stitch": stacks[1], "stack_labels": stacks[2]}
    return dataclasses.replace(job, ring_px=ring, info=info, **joined)


def _labels_of_stacks(labels: LabelKind | None, stitch: float | None) -> LabelKind:
    """The form of the labels of stacks that are joined. Raises `UsageError` if it cannot be written."""
    if stitch is None or labels in (None, "tiff"):
        return "tiff"
    check_zarr()
    return "zarr"


def _planes_to_predict(
    sources: Sequence[Source], reading: Reading, stitch: float | None
) -> tuple[list[Source], list[Stack]]:
    """The sources with each plane and time point as one, and the stacks that they are from."""
    if stitch is not None:
        check_iou(stitch)
        if not reading.takes_each:
            got, expected = f"`stitch={stitch:g}`", '`z="all"`, `t="all"`, or both'
            remedy = "predict each plane or time point, or omit `stitch`"
            raise UsageError("there are no planes to join", got=got, expected=expected, remedy=remedy)
    return each_plane(sources, reading)


def stacks_found(stacks: Sequence[Stack], stitch: float | None, reading: Reading) -> list[str]:
    """What is predicted of stacks, and that their planes are not joined; or that there are none."""
    if not stacks:
        to_join = "" if stitch is None else " to join"
        return [f"no image has several planes or time points{to_join}"] if reading.takes_each else []
    sizes = [
        " x ".join(count(len(axis), noun) for axis, noun in ((one.t, "time point"), (one.z, "plane")) if axis)
        for one in stacks
    ]
    shown = list(dict.fromkeys(sizes))
    text = f"{count(len(stacks), 'stack')} of {', '.join(shown[:3])}{', ...' if shown[3:] else ''}"
    how = "; objects are joined from one to the next by overlap alone"
    if stitch is None:
        how = "; objects are not joined from one to the next (`stitch` joins them by overlap)"
    return [f"{text}, each predicted as an image{how}"]


def _passed_over(labels_of: Mapping[Path, set[Path]]) -> list[Note]:
    """Notes about images in the folders that are not read. labels_of: those of other images, for each path."""
    notes = []
    for path, labels in labels_of.items():
        if path.is_dir() and not is_dataset(path):
            notes += [note for note in (passed_over_note(path), results_note(path)) if note is not None]
            if labels:
                text = f"skipped {count(len(labels), 'label image')} of other images, such as {min(labels).name}"
                notes.append(Note("label images were skipped", text, path.name))
    return notes


def recipe_yaml(members: Sequence[Model], fusion: FusionOptions) -> str:
    """The content of ``recipe.yaml``: how members are fused and the recipe of each; of one member its own recipe."""
    own = [_own_recipe(member) for member in members]
    if len(members) == 1:
        return own[0]
    # The names of models without absolute paths, which files never contain.
    names = [Path(member.name).name if Path(member.name).is_absolute() else member.name for member in members]
    models = [{"name": name, "recipe": parse_yaml(text)} for name, text in zip(names, own, strict=True)]
    return yaml.safe_dump({"fuse": fusion.as_values(len(members)), "models": models}, sort_keys=False)


def _own_recipe(member: Model) -> str:
    """The recipe of one model; of a choice of networks, the recipes of both by their names."""
    from cellwright.models.weights.model_folder import CHOICES, read_model_info

    if member.recipe is None:
        return yaml.safe_dump({"segmenter": identity_of([member])})
    if member.name in CHOICES:
        networks = {name: read_model_info(name).recipe for name in CHOICES[member.name]}
        return yaml.safe_dump({"name": member.name, "networks": networks}, sort_keys=False)
    return recipes.dump(member.recipe)


def pictures(class_names: Sequence[str]) -> Pictures:
    """How the pictures of a prediction folder are drawn."""
    from cellwright.report.colours import class_styles
    from cellwright.report.draw import contact_sheet, draw_overlay, draw_picture
    from cellwright.report.plate import draw_counts, draw_plate
    from cellwright.report.stack_picture import draw_stack

    def overlay(image: Image, instances: Instances, cells: Instances | None) -> np.ndarray:
        caption = "" if image.path is None else Path(image.path).name
        return draw_picture(image, instances, class_names=class_names, caption=caption, cells=cells)

    def thumbnail(image: Image, instances: Instances) -> np.ndarray:
        outline_px = max(round(max(image.image_hw) / 400), 1)
        return draw_overlay(image, instances, class_names=class_names, outline_px=outline_px, legend=False)

    def sheet(tiles: Sequence[tuple[str, np.ndarray]], title: str) -> np.ndarray:
        styles = class_styles(tuple(class_names)) if len(class_names) > 1 else ()
        return contact_sheet(tiles, title=title, styles=styles)

    return Pictures(
        overlay=overlay,
        thumbnail=thumbnail,
        sheet=sheet,
        plate=draw_plate,
        counts=draw_counts,
        report=_report,
        stack=draw_stack,
    )


def _report(folder: Path, about_all: Path) -> str:
    from cellwright.report.prediction_report import prediction_page

    return prediction_page(folder, about_all).html()


def files_written(out: Path, save: Sequence[str]) -> str:
    """``"out/ (predictions.json, summary.csv, masks)"``."""
    return f"{out}/ ({', '.join((PREDICTIONS, SUMMARY, *save))})"


def _announcement(plan: PredictPlan, n_images: int) -> str:
    from cellwright.models.weights.model_folder import finds_nuclei

    only = " (finds nuclei only)" if any(map(finds_nuclei, plan.model)) else ""
    views = "" if plan.views is None else f" in {count(len(parse_views(plan.views)), 'view')}"
    model = f"model {' + '.join(plan.model)}{only}{views}"
    cells = ("cell_masks",) if plan.expand is not None and "masks" in plan.save else ()
    return f"{count(n_images, 'image')}, {model}: will write {files_written(plan.out, (*plan.save, *cells))}"


def model_notes(model: Model, members: Sequence[Model], views: str | None) -> list[str]:
    """What a user should know about the scores and thresholds of the model."""
    notes = []
    if model.tuned_on is not None:
        notes.append(_limits_note(model))
        if views is None and model.views is not None:
            notes.append(f"uses the views {model.views}, with which the model was tuned")
        if views not in (None, model.tuned_on.get("views")):
            notes.append(f"the model was tuned with other views than {views}: its thresholds and scores may not fit")
        if model.pruned_to is not None:
            notes.append("the model was tuned with all levels of its network: its thresholds and scores may not fit")
    uncalibrated = [member.name for member in members if not member.is_calibrated]
    if uncalibrated and len(members) > 1:
        notes.append(
            f"scores that are not calibrated are compared as they are: {', '.join(uncalibrated)} (cellwright tune "
            "calibrates scores to the expected IoU)"
        )
    return notes


def _limits_note(model: Model) -> str:
    """Which objects a tuned model keeps, and what its scores mean."""
    scores, areas = model.options.score_threshold, model.options.min_area_px
    limits = []
    for k, name in enumerate(model.class_names):
        score = scores[k] if isinstance(scores, tuple) else scores
        area = areas[k] if isinstance(areas, tuple) else areas
        limit = f"a score of at least {shown_score(score)}" + (f" and {count(area, 'pixel')} or more" if area else "")
        limits.append(limit if len(model.class_names) == 1 else f"{limit} ({name})")
    meaning = ""
    if model.is_calibrated:
        meaning = "; a score is the expected overlap with the true outline (IoU)"
    return f"keeps objects with {', '.join(limits)}{meaning}; change with `score`"
