"""``predict`` on one image of any size: tile by tile, into a job folder."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from cellwright.api.models import (
    DEFAULT_MODEL,
    Model,
    ModelLike,
    as_model,
    ensemble,
    identity_of,
    made_by,
)
from cellwright.api.tile_jobs import Job, n_objects_of, open_job
from cellwright.core.errors import FormatError, UsageError
from cellwright.core.events import plain
from cellwright.core.files import write_png
from cellwright.core.folder_lock import FolderBusy
from cellwright.core.image import Image
from cellwright.core.memory import available_bytes
from cellwright.core.notes import Note
from cellwright.core.output_folder import Claim, Files, OutputFolder
from cellwright.core.progress import SILENT, ProgressReporter
from cellwright.core.result_folders import JOB_FILE
from cellwright.core.text import count
from cellwright.data.identity import digest_of
from cellwright.data.images.channels import ChannelChoice
from cellwright.data.images.level_source import LevelSource, downsample_of, full_hw
from cellwright.data.images.source import ImageSource, RegionSource, open_image
from cellwright.prediction.existing import ours
from cellwright.prediction.fusion import FusionOptions, Method
from cellwright.prediction.options import PredictOptions
from cellwright.prediction.predictor import Choice, Ensemble
from cellwright.prediction.runners import Running
from cellwright.prediction.sources import seen_by
from cellwright.prediction.tiling.facts import ImageFacts, found_finite
from cellwright.prediction.tiling.finish import FinalTiles
from cellwright.prediction.tiling.grid import Grid
from cellwright.prediction.tiling.job import (
    DENSITY,
    OVERVIEW,
    TISSUE,
    JobFacts,
    JobReport,
    changed,
    check_under_way,
    finish,
    refuse_other,
    run_tiles,
)
from cellwright.prediction.tiling.label_writers import LabelKind
from cellwright.prediction.tiling.ledger import Failure
from cellwright.prediction.tiling.models import device_of, tile_model, with_networks, without_networks
from cellwright.prediction.tiling.regions import Regions, find_regions, roi_words
from cellwright.prediction.tiling.statistics import readable_blocks
from cellwright.prediction.tiling.tissue import Tissue, find_tissue, tissue_of_mask, tissue_word
from cellwright.prediction.tiling.work import TileModel, TileWork

# Memory that an image takes at least if it is predicted at once, bytes per pixel: pixels, maps, labels and pictures.
WHOLE_BYTES_PER_PX = 180
# The share of the available memory that prediction may take.
MEMORY_SHARE = 0.6
DEFAULT_CORE_PX, SMALLEST_CORE_PX, LARGEST_CORE_PX = 1024, 128, 8192
# How often a shard looks whether another one has left the folder.
WAIT_S = 0.5
# The channels are chosen on at most this many pixels.
_SAMPLE_PX = 2048


@dataclass(frozen=True)
class TileRequest:
    """What the user asked for. core_px: side of the tiles, network px; None as the memory allows.

    roi: regions, as `roi_words` gives them. tissue: "auto", "none" or a mask; None: auto for files with a pyramid.
    ring_px: see `measure_instances`. identity: of the model's weights.
    """

    identity: str
    device: str = "auto"
    channel: ChannelChoice | None = None
    reading: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    core_px: int | None = None
    roi: tuple[str, ...] = ()
    tissue: str | None = None
    ring_px: int | None = None
    labels: LabelKind | None = None
    running: Running = dataclasses.field(default_factory=Running)

    def chosen(self, where: _Where) -> dict[str, Any]:
        """The options that were given, by their names."""
        roi = [] if where.regions is None else where.regions.words
        tissue = Path(self.tissue).name if self.tissue else None
        options = {"channel": self.channel, "tile": self.core_px, "roi": roi, "tissue": tissue, "ring": self.ring_px}
        return {**self.reading, **options, "labels": self.labels}

    def as_values(self, model: Model, where: _Where) -> dict[str, Any]:
        """What identifies the job besides the image, as JSON values."""
        options = model.options.as_values() | {
            "diameter": model.diameter,
            "views": model.views,
            "pruned_to": model.pruned_to,
            "reading": dict(self.reading),
            "channel": [] if self.channel is None else self.channel,
            "tile": self.core_px,
            "roi": [] if where.regions is None else where.regions.words,
            "tissue": where.tissue or "default",
            "ring": self.ring_px,
            "labels": self.labels,
        }
        calibration, members = options.pop("calibration"), ()
        if isinstance(model.predictor, Ensemble):
            members = tuple(getattr(member, "options", None) for member in model.predictor.members)
            options["fuse"] = model.predictor.options.as_values(len(members))
        if isinstance(model.predictor, Choice):
            members = model.predictor.options
        known = (self.identity, model.class_names, calibration)
        weights = digest_of(repr((*known, members) if members else known))
        return {"kind": "tiles", "the model": weights, "options": plain(options)}


@dataclass(frozen=True)
class OpenWork:
    """Makes the work of a job in another process: the source and the networks are opened there.

    predictor: see `without_networks`.
    """

    predictor: Any
    device: str
    source: ImageSource
    seen: ImageSource
    facts: ImageFacts
    grid: Grid
    options: PredictOptions
    ring_px: int | None
    threads: int | None = None

    def __call__(self) -> TileWork:
        """The work; loads the model."""
        model = tile_model(with_networks(self.predictor, self.device, self.threads))
        return TileWork(model, self.source, self.seen, self.facts, self.grid, self.options, ring_px=self.ring_px)


def sendable(predictor: Any, model: Model) -> Any:
    """A predictor of a model for other processes, which may have another working directory; see `with_networks`."""
    from cellwright.models.weights.model_folder import bundled_model

    names = (name if bundled_model(name) else str(Path(name).resolve()) for name in model.member_names)
    return without_networks(predictor, names)


def tiles_of(model: Model) -> TileModel:
    """What predicts tiles with a model. Raises `UsageError` for a model that cannot."""
    return tile_model(model.predictor)


def can_tile(model: Model) -> bool:
    """Whether a model can predict tiles."""
    try:
        tiles_of(model)
    except UsageError:
        return False
    return True


def seen_source(source: ImageSource, model: Model, channel: ChannelChoice | None) -> ImageSource:
    """The source with the channels that a model sees, chosen once for the whole image."""
    if not isinstance(source, RegionSource):
        if channel is not None:
            remedy = "give only these channels in its `read`"
            raise UsageError(
                "the channels of this source cannot be chosen", got=f"`channel` {channel!r}", remedy=remedy
            )
        return source
    sample = _sample(source)
    if source.dtype.kind == "f":  # whether a channel has finite values is told by the whole image
        sample = dataclasses.replace(sample, data=np.nan_to_num(sample.data, posinf=0, neginf=0))
    seen = seen_by(model.predictor, sample, channel)
    if seen.channels == source.channels:
        return source
    indices = [_index_in(sample, seen, k) for k in range(len(seen.channels))]
    return source.with_channels(indices, seen.channels, [note for note in seen.notes if note not in sample.notes])


def _index_in(image: Image, chosen: Image, k: int) -> int:
    """Which channel of ``image`` is the k-th that was chosen of it; several may have the same name."""
    named = [index for index, name in enumerate(image.channels) if name == chosen.channels[k]]
    same = [index for index in named if (image.data[:, :, index] == chosen.data[:, :, k]).all()]
    return (same or named)[0]


def _sample(source: ImageSource) -> Image:
    """The middle of an image, or the first part of it that can be decoded.

    Of a pyramid, it is a level of which the sample shows the whole image: the same one whichever level is predicted.
    """
    source = source.source if isinstance(source, LevelSource) else source
    sizes = [level.image_hw for level in source.levels]
    level = next((k for k, hw in enumerate(sizes) if max(hw) <= _SAMPLE_PX), len(sizes) - 1)
    height, width = sizes[level]
    h, w = min(height, _SAMPLE_PX), min(width, _SAMPLE_PX)
    try:
        return source.read((height - h) // 2, (width - w) // 2, h, w, level)
    except FormatError:
        for _, region in readable_blocks(source):
            return region
        raise


def core_px_of(tile: str) -> int | None:
    """The side of a core from text; None for auto and none. Raises `UsageError` for anything else."""
    if tile in ("auto", "none"):
        return None
    if not tile.isdecimal() or not SMALLEST_CORE_PX <= int(tile) <= LARGEST_CORE_PX:
        expected = f"auto, none, or {SMALLEST_CORE_PX} to {LARGEST_CORE_PX} px"
        raise UsageError("invalid `tile`", got=tile, expected=expected)
    return int(tile)


def shard_of(text: str | None) -> tuple[int, int] | None:
    """A shard from text such as "2/8". Raises `UsageError` if it is not one."""
    if text is None:
        return None
    part, slash, n = text.partition("/")
    if not slash or not part.isdecimal() or not n.isdecimal() or not 1 <= int(part) <= int(n):
        raise UsageError("invalid `shard`", got=text, expected="i/n with i from 1 to n, such as 2/8")
    return int(part), int(n)


def whole_bytes(image_hw: tuple[int, int], model: Model) -> int:
    """About how much memory it takes to predict an image at once, with a model that can predict tiles."""
    return int(image_hw[0] * image_hw[1] * max(WHOLE_BYTES_PER_PX, tiles_of(model).whole_bytes_per_px))


def core_that_fits(tiles: TileModel, facts: ImageFacts, n_workers: int) -> int:
    """The side of a core whose window fits into the memory there is, network px."""
    core = DEFAULT_CORE_PX
    while core > SMALLEST_CORE_PX:
        height, width = tiles.grid(facts, core)[0].window.hw
        if height * width * tiles.bytes_per_px * n_workers <= MEMORY_SHARE * available_bytes():
            break
        core //= 2
    return core


def run_job(
    source: ImageSource,
    model: Model,
    out: Path,
    request: TileRequest,
    *,
    overwrite: bool = False,
    reporter: ProgressReporter = SILENT,
    dry_run: bool = False,
    why: str = "",
) -> JobReport | None:
    """Predict one image tile by tile into a job folder, or go on with it; None after a dry run.

    why: why tiles are used, for the announcement. Raises `OutputError` for a folder with another job or other files,
    `UsageError` for a model that cannot predict tiles, and `InputError` for an image that cannot be used.
    """
    if model.options.expand is not None:
        remedy = "omit `expand`, and give it to `cellwright measure` for the finished job, which makes the same table"
        got = f"`expand={model.options.expand}`, and {count(1, 'image')} tile by tile{why}"
        raise UsageError("cells are not expanded tile by tile", got=got, remedy=remedy)
    tiles, seen = tiles_of(model), seen_source(source, model, request.channel)
    if request.running.shard is not None and overwrite:
        remedy = "remove the old result first, or choose another `out`"
        raise UsageError("shards cannot replace a result", got="`shard` and `overwrite`", remedy=remedy)
    output = OutputFolder(out, "predict", same=("fuse",))
    before = _job_before(output, output.pending if overwrite else output.claim)
    where = _Where.of(request, source, before)
    values = request.as_values(model, where)
    parts = _Parts(source, seen, tiles, model, describe_source(source), values, request, reporter, where)
    opened = _Opened.of(output, parts, overwrite=overwrite)
    if opened.is_complete(output):
        reporter.note(f"already complete: {out}/ has this job")
        return parts.complete(out, opened)
    name = "the image" if source.path is None else Path(source.path).name
    height, width = source.image_hw
    reporter.note(f"{name}: {height} x {width} px, tile by tile{why}: will write {out}/")
    if dry_run:
        for text in dict.fromkeys(note.text for note in (*seen.notes, *where.notes)):
            reporter.note(text)
        return None
    if request.running.shard is not None:
        return _run_shard(out, parts)
    opened.start(output, parts)
    try:
        job = opened.job(output, parts)
        n_before, seconds = _run(output.root, job, parts, output.verify)
        return finish_job(output, job, source, reporter, n_before=n_before, seconds=seconds)
    finally:
        output.close()


@dataclass(frozen=True)
class _Opened:
    """What is in the folder of a job. before: the job that is there, which is gone on with. old: files to replace."""

    claim: Claim | None
    before: JobFacts | None
    old: Files | None

    @staticmethod
    def of(output: OutputFolder, parts: _Parts, *, overwrite: bool) -> _Opened:
        """Look. Raises `OutputError` for another job, other predictions, or files that may not be replaced."""
        claim = output.pending if overwrite else output.claim
        before = _job_before(output, claim)
        old = ours(output)
        if before is None and old and not overwrite:
            refuse_other(output, ["it has predictions of another kind"], unfinished=not output.is_complete)
        own = parts.model.own_options
        differences = [] if before is None else changed(before, parts.described, parts.values, own)
        if not overwrite:
            refuse_other(output, differences, unfinished=not output.is_complete)
            return _Opened(claim, before, None)
        path = parts.source.path
        output.check_replaceable([] if path is None else [path], old)
        return _Opened(None, None, old) if differences else _Opened(claim, before, old)

    def is_complete(self, output: OutputFolder) -> bool:
        """Whether there is nothing to do."""
        if self.before is None or self.old is not None or not output.is_complete or output.missing:
            return False
        return not self.before.ledger(output.path).left(verify=False)

    def start(self, output: OutputFolder, parts: _Parts) -> None:
        """Lock the folder. Raises `FolderBusy` if it is in use, or if it has changed since."""
        for note in parts.where.notes if self.before is not None else ():
            parts.reporter.note(note.text)
        output.start(parts.values, resume=self.claim if self.before is not None else None, replaces=self.old)

    def job(self, output: OutputFolder, parts: _Parts) -> JobFacts:
        """The job in the locked folder; a new one is prepared and written."""
        if self.before is not None:
            return self.before
        job = parts.new_job()
        if job.tissue is not None:
            write_png(output.root / TISSUE, _tissue_picture(parts.source, job))
        else:  # of another job, which was not finished
            (output.root / TISSUE).unlink(missing_ok=True)
        job.write(output.root)
        return job


@dataclass(frozen=True, eq=False)
class _Where:
    """Which part of an image is predicted.

    tissue: what identifies the choice, as `tissue_word` gives it; choice: what was given. notes: what was assumed.
    """

    regions: Regions | None
    tissue: str | None
    choice: str | None
    notes: tuple[Note, ...]

    @staticmethod
    def of(request: TileRequest, source: ImageSource, before: JobFacts | None) -> _Where:
        """From a request. before: the job in the folder, which has stored what its files said."""
        stored = (None, None) if before is None else (before.regions, before.tissue)
        regions, notes = find_regions(request.roi, full_hw(source), stored[0])
        if regions is not None and regions is not stored[0]:
            regions = regions.reduced(downsample_of(source))
        word, tissue_notes = tissue_word(request.tissue, stored[1])
        return _Where(regions, word, request.tissue, (*notes, *tissue_notes))

    def tiles(
        self, grid: Grid, source: ImageSource, reporter: ProgressReporter
    ) -> tuple[tuple[int, ...], Tissue | None]:
        """The numbers of the tiles to predict; and the tissue if tiles are skipped that have none."""
        cores = [grid.source_window(tile.core) for tile in grid]
        touched = np.ones(len(grid), bool) if self.regions is None else self.regions.touch(cores)
        everything = tuple(np.flatnonzero(touched).tolist())
        tissue = self._find(source, reporter)
        if tissue is None:
            return everything, None
        kept = np.flatnonzero(touched & tissue.touch(cores))
        is_mask, n_skipped = tissue.word != "auto", len(everything) - len(kept)
        if not is_mask and (not n_skipped or not len(kept)):
            if self.tissue == "auto":
                why = "only glass was found" if n_skipped else f"there is tissue in or near all of them ({len(kept)})"
                reporter.note(f"no tile is skipped as background: {why}")
            return everything, None
        if not len(kept):
            problem, got = "there is no tissue in this part of the image", f"`tissue` {self.choice}"
            raise UsageError(problem, got=got, remedy='use `tissue="none"`, or other regions')
        what = "have no tissue" if is_mask else "are only glass"
        skipped = f"{n_skipped} of {count(len(everything), 'tile')} {what} and are skipped"
        reporter.note(f'{skipped}, as {TISSUE} shows; `tissue="none"` predicts them, too')
        return tuple(kept.tolist()), tissue

    def _find(self, source: ImageSource, reporter: ProgressReporter) -> Tissue | None:
        if self.tissue == "none" or (self.tissue is None and len(source.levels) < 2):
            return None
        if self.tissue not in (None, "auto"):
            assert self.choice is not None
            return tissue_of_mask(Path(self.choice), self.tissue, source.image_hw)
        found = find_tissue(source, track=reporter.track)
        if isinstance(found, Tissue):
            return found
        if self.tissue == "auto":
            reporter.note(f"no tile is skipped as background: {found}")
        return None


@dataclass(frozen=True, eq=False)
class _Parts:
    """What a job is made of."""

    source: ImageSource
    seen: ImageSource
    tiles: TileModel
    model: Model
    described: Mapping[str, Any]
    values: Mapping[str, Any]
    request: TileRequest
    reporter: ProgressReporter
    where: _Where

    def complete(self, out: Path, opened: _Opened) -> JobReport:
        """The report of a job that was complete before."""
        assert opened.before is not None
        n_tiles = len(opened.before.tiles)
        failures = opened.before.ledger(out).failures()
        return JobReport(n_tiles, n_tiles - len(failures), n_objects_of(out), 0.0, tuple(failures))

    def new_job(self) -> JobFacts:
        """Find the facts of the image, and choose the tiles."""
        request, reporter = self.request, self.reporter
        seen, finite, notes = found_finite(self.seen)
        facts = self.tiles.facts(seen, track=reporter.track)
        facts = dataclasses.replace(
            facts, finite=finite.finite, notes=(*self.seen.notes, *self.where.notes, *notes, *facts.notes)
        )
        core = request.core_px or core_that_fits(self.tiles, facts, max(request.running.workers, 1))
        grid = self.tiles.grid(facts, core)
        numbers, tissue = self.where.tiles(grid, self.source, reporter)
        if facts.diameter is not None and facts.diameter.px is not None:
            how = "estimated" if facts.diameter.estimated else "given"
            reporter.note(f"diameter {facts.diameter.px:.1f} px ({how})")
        reporter.note(f"{count(len(numbers), 'tile')} of up to {core} px")
        return JobFacts(
            self.described,
            self.values,
            self.model.class_names,
            facts,
            grid,
            numbers,
            self.where.regions,
            tissue,
            made_by={
                **made_by(self.model, request.chosen(self.where)),
                "calibrated": self.model.is_calibrated,
            },
        )

    def work(self, job: JobFacts) -> TileWork:
        """The work, in this process."""
        options = self.model.options
        return TileWork(self.tiles, self.source, self.seen, job.facts, job.grid, options, ring_px=self.request.ring_px)

    def work_elsewhere(self, job: JobFacts) -> OpenWork:
        """The work, for other processes."""
        return OpenWork(
            sendable(self.model.predictor, self.model),
            self.request.device,
            self.source,
            self.seen,
            job.facts,
            job.grid,
            self.model.options,
            self.request.ring_px,
            self.request.running.threads,
        )


def _run(root: Path, job: JobFacts, parts: _Parts, check: Callable[[], None]) -> tuple[int, float]:
    """Predict the tiles that are left; how many were done before, and seconds per megapixel. See `run_tiles`."""
    reporter, running = parts.reporter, parts.request.running
    ledger = job.ledger(root)
    for text in dict.fromkeys(note.text for note in job.facts.notes):
        reporter.note(text)
    if (n_done := len(job.tiles) - len(ledger.left(verify=False))) > 0:
        reporter.note(f"{count(n_done, 'tile')} done before, {len(job.tiles) - n_done} to do")
    make_work = parts.work_elsewhere(job) if running.is_elsewhere else partial(_same, parts.work(job))
    return run_tiles(ledger, job, make_work, running, check=check, track=reporter.track)


def _run_shard(out: Path, parts: _Parts) -> JobReport:
    """Predict the tiles of a shard; other shards may do so at the same time. The last one finishes the job.

    The folder is locked while the job is prepared and while it is finished, not while tiles are predicted.
    """
    with _locked(out, parts) as (output, job):
        if job is None:
            return parts.complete(out, _Opened.of(output, parts, overwrite=False))
        root = output.root
    n_before, seconds = _run(root, job, parts, partial(check_under_way, out, job))
    with _locked(out, parts) as (output, current):
        if current is None:
            return parts.complete(out, _Opened.of(output, parts, overwrite=False))
        ledger = job.ledger(root)
        unfinished = set(ledger.left(verify=False)) - {failure.tile for failure in ledger.failures()}
        if unfinished:
            text = f"{count(len(unfinished), 'tile')} are left to other shards; the last one finishes the job"
            parts.reporter.note(text)
            return JobReport(len(job.tiles), n_before, None, seconds)
        return finish_job(output, job, parts.source, parts.reporter, n_before=n_before, seconds=seconds)


@contextmanager
def _locked(out: Path, parts: _Parts) -> Iterator[tuple[OutputFolder, JobFacts | None]]:
    """The locked folder and its job, or None if it is complete. Waits while another shard has the folder."""
    said = False
    while True:
        output = OutputFolder(out, "predict", same=("fuse",))
        opened = _Opened.of(output, parts, overwrite=False)
        if opened.is_complete(output):
            yield output, None
            return
        try:
            opened.start(output, parts)
            break
        except FolderBusy as error:
            if not said:
                parts.reporter.note(f"waiting: {error.problem}")
            said = True
            time.sleep(WAIT_S)
    try:
        yield output, opened.job(output, parts)
    finally:
        output.close()


def finish_job(
    output: OutputFolder,
    job: JobFacts,
    source: ImageSource,
    reporter: ProgressReporter,
    *,
    n_before: int,
    seconds: float,
) -> JobReport:
    """Write the outputs of a job whose tiles are done or failed, and declare it complete."""
    failures = job.ledger(output.root).failures()
    final, files, notes = finish(output, job, source, draw=_pictures, report=_report, track=reporter.track)
    output.complete(files)
    for note in notes:
        reporter.note(note)
    return JobReport(len(job.tiles), n_before, final.n_objects, seconds, tuple(failures), tuple(notes), tuple(files))


def _same(work: TileWork) -> TileWork:
    return work


def _job_before(output: OutputFolder, claim: Claim | None) -> JobFacts | None:
    if claim is None:
        return None
    root = output.progress_of(claim).parent.parent
    return JobFacts.read(root) if (root / JOB_FILE).is_file() else None


def describe_source(source: ImageSource) -> dict[str, Any]:
    """What ``job.json`` says about the image."""
    return {
        "path": None if source.path is None else str(Path(source.path).resolve()),
        "fingerprint": source.fingerprint(),
        "image_hw": list(source.image_hw),
        "channels": list(source.channels),
        "pixel_size_um": None if source.pixel_size_um is None else list(source.pixel_size_um),
        "full_hw": list(full_hw(source)),
        "downsample": list(downsample_of(source)),
    }


def predict_tiles(  # noqa: PLR0913 - the options of the command
    image: Any,
    *,
    model: ModelLike | Sequence[ModelLike] = DEFAULT_MODEL,
    out: str | Path,
    fuse: Method = "wbf",
    weights: Sequence[float] | None = None,
    channel: ChannelChoice | None = None,
    tile: int | str = "auto",
    roi: str | Path | Sequence[str | Path | tuple[int, int, int, int]] = (),
    tissue: str | Path | None = None,
    labels: LabelKind | None = None,
    workers: int = 1,
    shard: str | None = None,
    dask: str | None = None,
    ring: int | None = None,
    overwrite: bool = False,
    progress: Callable[[int, int], object] | None = None,
) -> Job:
    """Predict one image of any size tile by tile into a job folder, as the command ``cellwright predict`` does.

    An interrupted job resumes when it is called again with the same arguments.

    Args:
        image: a path, an array of NumPy, Dask, Zarr or HDF5, or what `open_image` returns.
        model: a `Model`, what `load_model` takes, or a `Segmenter` of your own, which sees windows of the image;
            several are fused (ensemble). Set the options of a model with `Model.with_options`.
        out: folder to write.
        fuse, weights: how the objects of several models are fused (see `fuse`), and one weight per model.
        channel: name or index of the channel to use, where there are several; see `Model.predict`.
        tile: side of the tiles, px at the network's scale; "auto" as the memory allows.
        roi: keep only objects in these regions, px of the full size: (y0, x0, height, width), or GeoJSON files of
            polygons such as QuPath's annotations. An object is in a region if the pixel nearest to its mean position
            is. Tiles without a region are skipped.
        tissue: "auto" skips tiles that are only glass, "none" none, and an image file those without nonzero pixels; it
            shows the whole image at any size. None: "auto" for files with a pyramid, else "none".
        labels: "zarr" (OME-Zarr, the default where zarr is installed) or "tiff" (BigTIFF).
        workers: processes that predict tiles.
        shard: "i/n": only every n-th tile; the last of the n calls finishes the job.
        dask: address of a Dask scheduler, or "local".
        ring: measure the background of each channel in a ring of this width around each object, px.
        overwrite: replace another job in the folder, once the new one is complete.
        progress: called after each tile with the numbers of tiles that are done, and of all. An exception that it
            raises ends the call; the job resumes with the next one.

    Returns:
        The `Job`. It is not complete if other shards are still to be run.

    Raises:
        InputError: the image cannot be read, or its channels do not fit the model.
        OutputError: the folder has another job, or other files.
        UsageError: an option is out of range, or the model cannot predict tiles.

    Example:
        >>> import cellwright as cw, numpy as np
        >>> image = np.zeros((200, 300), np.uint8)
        >>> image[50:70, 50:70] = image[120:140, 200:220] = 200
        >>> model = cw.load_model("nuclei").with_options(diameter=20)
        >>> job = cw.predict_tiles(image, model=model, out="job", tile=128, labels="tiff")
        >>> job.n_objects == len(job.objects()), job.is_complete
        (True, True)
    """
    given: Any = model
    members = [as_model(one) for one in (given if isinstance(given, list | tuple) else [given])]
    fused = ensemble(members, FusionOptions(fuse, weights=None if weights is None else tuple(weights)))
    if dask is not None and isinstance(image, str | Path):
        image = Path(image).resolve()
    source = open_image(image, channel=channel, keep_channels=True)
    request = TileRequest(
        identity_of(members),
        device_of(fused.predictor),
        channel,
        {"level": source.level} if isinstance(source, LevelSource) else {},
        core_px_of(str(tile)),
        roi_words(roi),
        None if tissue is None else str(tissue),
        ring,
        labels,
        Running(workers, dask, shard_of(shard), progress),
    )
    run_job(source, fused, Path(out), request, overwrite=overwrite)
    return open_job(out)


def _tissue_picture(source: ImageSource, job: JobFacts) -> np.ndarray:
    from cellwright.report.overview import draw_tissue

    assert job.tissue is not None
    return draw_tissue(source, job.tissue, job.grid, job.tiles)


def _report(folder: Path, outputs: Path) -> str:
    from cellwright.report.job_report import job_page

    return job_page(folder, outputs).html()


def _pictures(
    job: JobFacts, source: ImageSource, final: FinalTiles, failures: Sequence[Failure]
) -> dict[str, np.ndarray]:
    from cellwright.report.density import density, draw_density
    from cellwright.report.overview import draw_overview

    predicted = set(job.tiles) - {failure.tile for failure in failures}
    per_px, cell, sigma = density(final, job.grid, predicted, job.regions)
    drawn = draw_density(per_px, cell, sigma, source.image_hw, source.pixel_size_um, final.n_objects)
    pictures = {OVERVIEW: draw_overview(source, final, job.regions), DENSITY: drawn}
    return pictures if job.tissue is None else pictures | {TISSUE: _tissue_picture(source, job)}
