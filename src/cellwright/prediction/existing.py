"""What is in an output folder before a job writes there, and what the job does about it.

A folder in which no image is done takes any job. The same job goes on where it was; a finished one is complete. Images
that are done and would come out otherwise are kept: that needs ``overwrite``, or another folder.

Every file that a record lists is compared with its digest. One that is missing or empty (a power cut) is made again.
One that was changed is the user's: a corrected label image, ROIs or outlines are kept, and count when the folder is
read; other changed files are never written over, nor are files that are not in any record.
"""

from __future__ import annotations

from collections.abc import Container, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from cellwright.core.claim import Claim, Files
from cellwright.core.errors import InputError, OutputError
from cellwright.core.file_identity import FileIdentity
from cellwright.core.output_folder import OutputFolder
from cellwright.core.staging import refuse_foreign
from cellwright.core.text import count, listed
from cellwright.data.formats import FORMATS
from cellwright.data.formats.contract import Prefer, ReadOptions
from cellwright.data.formats.paths import output_path
from cellwright.data.formats.predictions import EDITABLE, UNREADABLE, is_correction
from cellwright.prediction.earlier import earlier_images, is_earlier
from cellwright.prediction.job import ENDINGS, PREDICTIONS, Job, SeeImage, changes
from cellwright.prediction.ledger import Done, Ledger

REMEDY = "use `overwrite=True` to start again, or choose another `out`"


@dataclass(frozen=True)
class Existing:
    """What to do with the folder.

    state: "new" (nothing is done yet), "resumed", "replaced" (a result, by a new one), or "complete". done: the images
    that are done. resume: the claim to go on with. old: the files that are replaced. edited: files that were changed
    after they were written, and are kept.
    """

    state: Literal["new", "resumed", "replaced", "complete"]
    done: Mapping[str, Done] = field(default_factory=dict)
    resume: Claim | None = None
    old: Files = field(default_factory=dict)
    edited: Sequence[str] = ()


def examine(
    output: OutputFolder,
    job: Job,
    see: SeeImage | None,
    inputs: Iterable[Path],
    *,
    overwrite: bool,
    joins: bool = False,
) -> Existing:
    """What a job finds in its folder. inputs: files of the command, which must not be among those that are replaced.

    joins: other processes write in the folder for the same job, which may not have done any image yet.

    Raises `OutputError` for a result or unfinished images of another job, and for files that would be lost.
    """
    claim = output.claim
    if overwrite:
        for unfinished in (output.pending, None if claim is None or claim.state == "complete" else claim):
            if (going_on := _same_job(output, unfinished, job, see)) is not None:
                output.check_replaceable(inputs, going_on.old)
                return going_on
        if claim is not None and _is_of_tiles(claim) and claim.state != "complete":
            problem = "this folder has unfinished predictions of one image, in tiles"
            raise OutputError(problem, where=output.shown, remedy="finish them, or choose another `out`")
        old = ours(output)
        output.check_replaceable(inputs, old)
        return Existing("replaced" if old else "new", old=old)
    if claim is None:
        return Existing("new")
    if _is_of_tiles(claim):
        raise OutputError(
            "this folder has other predictions: of one image, in tiles", where=output.shown, remedy=REMEDY
        )
    ledger = Ledger(output.progress_of(claim))
    finished = _finished(output, claim, ledger)
    done = ledger.done() if finished is None else finished
    if claim.request is None:
        raise OutputError("predictions of another job are here", where=output.shown, remedy=REMEDY)
    if not done and not (joins and claim.request == job.request()):
        old = ours(output)
        if is_earlier(output.path) and any(name.endswith(".done") for name in old):
            problem = "this folder has unfinished predictions of an earlier version of cellwright"
            raise OutputError(problem, where=output.shown, remedy=REMEDY)
        output.check_replaceable((), old)
        return Existing("new", old=old)
    different = changes(job, claim.request, done, see, is_finished=finished is not None)
    if different:
        got = f"changed since: {'; '.join(different)}"
        unfinished = "" if finished is not None else ", unfinished"
        raise OutputError(f"this folder has other{unfinished} predictions", where=output.shown, got=got, remedy=REMEDY)
    if finished is not None:
        return Existing("complete", finished, edited=_check_finished(output, claim))
    return _resumed(output, claim, job, done)


def _is_of_tiles(claim: Claim) -> bool:
    """Whether another kind of job has claimed the folder (see `api.predict_tiles`)."""
    return claim.request is not None and "kind" in claim.request


def ours(output: OutputFolder) -> Files:
    """Every file in the folder that we wrote: those of the result, of images that are done, and those begun."""
    if output.claim is None:
        return {}
    files = dict(output.claim.files)
    if output.claim.state == "writing":
        ledger = Ledger(output.progress_of(output.claim))
        files |= _moved(output.path, ledger, files)
        for done in ledger.done().values():
            files |= done.files
    return files


def _moved(root: Path, ledger: Ledger, known: Container[str]) -> Files:
    """Files that were begun and are there as they were written, but for those that are known."""
    begun = {name: identity for files in ledger.begun().values() for name, identity in files.items()}
    return {
        name: identity
        for name, identity in begun.items()
        if name not in known and state_of(root / name, identity) == "as written"
    }


def _finished(output: OutputFolder, claim: Claim, ledger: Ledger) -> Mapping[str, Done] | None:
    """All images of a finished job; None for one with images that failed or are not done."""
    if claim.state != "complete":
        return None
    return earlier_images(output.path) if is_earlier(output.path) else ledger.finished()


def _same_job(output: OutputFolder, claim: Claim | None, job: Job, see: SeeImage | None) -> Existing | None:
    """How to go on with an unfinished job; None for another job, or if nothing is done."""
    if claim is None or claim.request is None:
        return None
    done = Ledger(output.progress_of(claim)).done()
    if not done or changes(job, claim.request, done, see, is_finished=False):
        return None
    return _resumed(output, claim, job, done)


def _resumed(output: OutputFolder, claim: Claim, job: Job, done: Mapping[str, Done]) -> Existing:
    """The images whose files are as they were written. Raises `OutputError` for files that would be lost."""
    is_pending = claim is output.pending
    ledger = Ledger(output.progress_of(claim))
    root = ledger.folder.parents[1]
    intact: dict[str, Done] = {}
    edited: list[str] = []
    changed: list[str] = []
    for image_id, one in done.items():
        states = {name: state_of(root / name, identity) for name, identity in one.files.items()}
        own = [name for name, state in states.items() if state == "changed"]
        if "lost" in states.values():
            changed += own
            continue
        corrected = [name for name in own if _is_correction(ledger, root, image_id, name)]
        changed += [name for name in own if name not in corrected]
        edited += corrected
        intact[image_id] = one
    of_images = {name for one in done.values() for name in one.files}
    about_all = {name: identity for name, identity in claim.files.items() if name not in of_images}
    changed += [name for name, identity in about_all.items() if state_of(root / name, identity) == "changed"]
    if changed:
        raise OutputError(
            "files of these predictions were changed after they were written",
            where=output.shown,
            got=f"{count(len(changed), 'file')} ({listed(changed)})",
            remedy="move them to another folder and run the same command again, or choose another `out`",
        )
    check_foreign(output, root, _names_left(job, intact), {*of_images, *claim.files}, ledger)
    return Existing("resumed", intact, claim, ours(output) if is_pending else {}, edited)


def check_foreign(output: OutputFolder, root: Path, names: Iterable[str], known: set[str], ledger: Ledger) -> None:
    """Raise `OutputError` for files that are not in any record and have the name of a file to be written."""
    there = [name for name in names if name not in known and (root / name).exists()]
    # Afterwards, for another process may be writing: files are begun before they are there.
    moved = _moved(root, ledger, ()) if there else {}
    refuse_foreign([name for name in there if name not in moved], output.shown)


def state_of(path: Path, identity: FileIdentity | None) -> Literal["as written", "changed", "lost"]:
    """How a file is compared with what was recorded (None: that is not known)."""
    if not path.is_file() or path.stat().st_size == 0:
        return "lost"
    if identity is None or FileIdentity.of(path, identity).digest == identity.digest:
        return "as written"
    return "changed"


def names_of(job: Job, image_id: str) -> dict[str, str]:
    """The names of the files of an image, by kind."""
    return {kind: output_path(Path(), image_id, ENDINGS[kind]).as_posix() for kind in job.kinds}


def _names_left(job: Job, done: Mapping[str, Done]) -> list[str]:
    left = [source for source in job.sources if source.id not in done and source.error is None]
    return [name for source in left for name in names_of(job, source.id).values()]


def _is_correction(ledger: Ledger, root: Path, image_id: str, name: str) -> bool:
    """Whether a changed file holds the objects of its image, and can be read."""
    kinds: list[Prefer] = [kind for kind, ending in EDITABLE.items() if name.endswith(ending)]
    record = FORMATS["coco"].read(ledger.path(image_id, ".json"), ReadOptions(require_images=False))
    return bool(kinds) and is_correction(root, record, kinds[0])


def _check_finished(output: OutputFolder, claim: Claim) -> list[str]:
    """The files that were changed since. Raises `OutputError` if files are missing, empty or can no longer be read."""
    states = {name: state_of(output.path / name, identity) for name, identity in claim.files.items()}
    lost = [name for name, state in states.items() if state == "lost"]
    if lost:
        got = f"{count(len(lost), 'file')} missing or empty ({listed(lost)})"
        raise OutputError("files of these predictions were removed", where=output.shown, got=got, remedy=REMEDY)
    changed = [name for name, state in states.items() if state == "changed"]
    if any(name == PREDICTIONS or name.endswith(tuple(EDITABLE.values())) for name in changed):
        try:
            read = FORMATS["predictions"].read(output.path, ReadOptions(require_images=False))
            damaged = [f"{note.where}: {note.text}" for note in read.notes if note.kind == UNREADABLE]
        except InputError as error:
            damaged = [error.problem]
        if damaged:
            raise OutputError(
                "files of these predictions were changed, and cannot be read",
                where=output.shown,
                got=f"{listed(changed)}: {'; '.join(damaged[:3])}",
                remedy="move them to another folder; then `overwrite=True` makes all again",
            )
    return changed
