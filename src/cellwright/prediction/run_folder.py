"""Predict the images of a prediction folder: here, in several processes, on a cluster, or as one of several shards."""

from __future__ import annotations

import errno
import time
from collections.abc import Callable, Mapping
from contextlib import closing, suppress
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

from cellwright.core.claim import Claim
from cellwright.core.errors import CellwrightError, InputError, OutputError, UsageError
from cellwright.core.folder_lock import FolderBusy
from cellwright.core.memory import held_bytes, trim_memory
from cellwright.core.progress import SILENT, ProgressReporter, Track, no_progress
from cellwright.data.images.reading import Reading
from cellwright.prediction.folder import FolderReport, PredictionFolder
from cellwright.prediction.image_writer import ImageWriter, Pictures, Place
from cellwright.prediction.job import Job
from cellwright.prediction.ledger import Done
from cellwright.prediction.predictor import Predictor
from cellwright.prediction.runners import Running
from cellwright.prediction.sources import Source, read_and_choose

# A larger image is written before the next one is read, so that only one takes memory.
LARGE_PX = 1 << 24
# If a process holds so much more after an image than before the first one, what was freed is returned to the system, so
# that images of many sizes do not leave more and more of it in pieces.
KEPT_BYTES = 9 << 27
# How often a shard looks whether another one has left the folder.
WAIT_S = 0.5

Opened = tuple[Predictor, Pictures]
OpenPredictor = Callable[[], Opened]
"""Loads a predictor, and how pictures are drawn, in another process: it can be pickled."""


@dataclass(frozen=True)
class ImageUnits:
    """Images of a job, see `Units`; the result of an image is its record.

    job: without its sources, which are ``sources`` by number. shown: those of which a small picture is kept.
    """

    opener: OpenPredictor
    job: Job
    place: Place
    reading: Reading
    sources: Mapping[int, Source]
    shown: frozenset[int]

    def open(self) -> ImagePredictor:
        """See `Units`."""
        predictor, pictures = self.opener()
        return ImagePredictor(predictor, ImageWriter(self.job, pictures, self.place), held_bytes() + KEPT_BYTES)

    def result(self, number: int) -> Done | None:
        """See `Units`."""
        return self.place.done(self.sources[number].id)

    def failure(self, number: int, error: CellwrightError | MemoryError) -> CellwrightError | None:
        """See `Units`. Images fail that cannot be read or do not fit the model, and whose names the disk refuses."""
        if isinstance(error, MemoryError):
            remedy = "cut the image into parts, reduce its size, or use a machine with more memory"
            path = self.sources[number].path
            return InputError("there is not enough memory for this image", where=path, remedy=remedy)
        is_own = isinstance(error, InputError | UsageError) or _is_about_name(error)
        return error if is_own else None

    def lost(self, number: int) -> CellwrightError:
        """See `Units`."""
        got, remedy = "perhaps the machine ran out of memory", "use fewer `workers`, or reduce the size of the image"
        problem = "the process that predicted this image ended"
        return InputError(problem, where=self.sources[number].path, got=got, remedy=remedy)

    def part(self, number: int) -> ImageUnits:
        """See `Units`."""
        return replace(self, sources={number: self.sources[number]}, shown=self.shown & {number})


@dataclass(frozen=True)
class ImagePredictor:
    """See `Work`."""

    predictor: Predictor
    writer: ImageWriter
    limit_bytes: int

    def predict(self, units: ImageUnits, number: int) -> Callable[[], Done]:
        """See `Work`."""
        source = units.sources[number]
        if source.error is not None:
            raise source.error
        trim_memory(self.limit_bytes)
        image, seen = read_and_choose(source, self.predictor, units.reading)
        (prediction,) = self.predictor.predict([seen])
        is_shown = number in units.shown
        store = partial(self.writer.write, source, number + 1, image, prediction, seen=seen, thumbnail=is_shown)
        if image.image_hw[0] * image.image_hw[1] > LARGE_PX:
            done = store()
            return lambda: done
        return store


def predict_into(
    folder: PredictionFolder,
    predictor: Predictor,
    *,
    reading: Reading = Reading(),  # noqa: B008 - frozen
    running: Running = Running(),  # noqa: B008 - frozen
    elsewhere: OpenPredictor | None = None,
    fail_fast: bool = False,
    track: Track = no_progress,
) -> FolderReport:
    """Predict all sources of a folder's job, and finish the folder.

    reading: which part of each image is used; all channels are measured. elsewhere: the predictor for other processes,
    if ``running`` has any.

    An image that cannot be read or does not fit the model is recorded in failures.csv and the job continues; with
    ``fail_fast`` its error is raised and the folder stays unfinished.
    """
    if folder.is_complete:
        return folder.report()
    folder.start()
    try:
        place = folder.place(folder.check_under_way() if running.is_elsewhere else None)
        opener = elsewhere if running.is_elsewhere else partial(_same, (predictor, folder.pictures))
        assert opener is not None
        units = _units(folder, running, opener, place, reading)
        left = folder.left
        outcomes = running.outcomes(units, left)
        with closing(outcomes):
            for outcome in track(outcomes, "predicting", len(left)):
                folder.verify()
                if outcome.result is not None:
                    folder.add(outcome.unit, outcome.result)
                elif outcome.failure is not None:
                    if fail_fast:
                        raise outcome.failure
                    folder.fail(outcome.unit, outcome.failure)
                if running.progress is not None:
                    running.progress(len(folder.job.sources) - folder.n_left, len(folder.job.sources))
        return folder.finish()
    finally:
        folder.close()


def predict_shard(
    out: Path,
    open_folder: Callable[[], PredictionFolder],
    predictor: Predictor,
    *,
    reading: Reading,
    running: Running,
    elsewhere: OpenPredictor | None = None,
    reporter: ProgressReporter = SILENT,
) -> FolderReport:
    """Predict the images of one shard, see `predict_into`; others may do so at the same time. The last one finishes.

    The folder is locked while the job is prepared and while it is finished, not while images are predicted.
    open_folder: looks at the folder ``out``, with ``joins``.
    """
    folder = _locked(out, open_folder, reporter)
    if folder.is_complete:
        return folder.report()
    mine = running.mine(folder.left)
    folder.forget_failures(mine)
    folder.close()
    check = folder.check_under_way()
    opener = elsewhere if running.is_elsewhere else partial(_same, (predictor, folder.pictures))
    assert opener is not None
    outcomes = running.outcomes(_units(folder, running, opener, folder.place(check), reading), mine)
    with closing(outcomes):
        for outcome in reporter.track(outcomes, "predicting", len(mine)):
            check()
            if outcome.result is not None:
                folder.add(outcome.unit, outcome.result)
            elif outcome.failure is not None:
                folder.fail_for_all(outcome.unit, outcome.failure)
    whole = _locked(out, open_folder, reporter)
    try:
        if whole.is_complete:
            return whole.report()
        whole.take_failures()
        return whole.finish() if whole.n_left == 0 else folder.shard_report(whole.n_left)
    finally:
        whole.close()


def _units(
    folder: PredictionFolder, running: Running, opener: OpenPredictor, place: Place, reading: Reading
) -> ImageUnits:
    sources = dict(enumerate(folder.job.sources))
    if running.dask is not None:  # whose workers may have another working directory
        sources = {k: replace(source, path=source.path.absolute()) for k, source in sources.items()}
    return ImageUnits(opener, replace(folder.job, sources=()), place, reading, sources, folder.shown)


def _same(opened: Opened) -> Opened:
    return opened


def _locked(out: Path, open_folder: Callable[[], PredictionFolder], reporter: ProgressReporter) -> PredictionFolder:
    """The folder, started, or complete. Waits while another process has it."""
    said = False
    while True:
        seen = _claim(out)
        try:
            folder = open_folder()
            if not folder.is_complete:
                folder.start()
            return folder
        except FolderBusy as error:
            if not said:
                reporter.note(f"waiting: {error.problem}")
            said = True
            time.sleep(WAIT_S)
        except CellwrightError:
            if _claim(out) == seen:  # otherwise another process has finished the job just now
                raise


def _claim(out: Path) -> Claim | None:
    with suppress(CellwrightError):
        return Claim.read(out.resolve())
    return None


def _is_about_name(error: CellwrightError) -> bool:
    """Whether an output could not be written because of its name, which the disk does not allow."""
    cause = error.__cause__ if isinstance(error, OutputError) else None
    return isinstance(cause, OSError) and cause.errno in (errno.ENAMETOOLONG, errno.EINVAL, errno.EILSEQ)
