"""The one way in which cellwright writes a folder: claimed first, complete or unfinished, and only ours is removed.

Everything in an output folder that is not a result lies in its subfolder ``.cellwright/``:

    claim.json   whose folder this is: the verb, the request that it answers (digests and options), a state, and every
                 file that was written, with its size and digest
    lock         who writes here now (see `core.folder_lock`)
    progress/    records of a job that can be resumed
    new/         a result that is being built, itself laid out as an output folder, with ``.cellwright/`` in it

The states of a claim: ``writing`` (begun, perhaps killed), ``swapping`` (the result in ``new/`` is complete, and is
being moved to its place), ``complete``.

What is promised:

- The claim is on the disk before any other file. So a folder without one is not ours: unless it is empty it is
  refused, whatever the options. ``earlier`` recognises folders written by versions that had no claims.
- Only files of the claim are removed, only while they have the content that was written, and never through links. A
  file that was changed since is the user's: an output with such files is not replaced.
- An old result is replaced only by a complete new one; a kill while files are moved is finished by the next `start`
  or `OutputFolder` of any verb.
- A claim counts a file only once its content is on the disk.

**Verbs that build everything and then move it in** (evaluate, export, ...) use `build`::

    output = OutputFolder(plan.out, "evaluate", earlier=earlier)
    if output.answers(request):                      # complete, with all its files; OutputError if it is another's
        return
    if overwrite: output.check_replaceable(inputs)   # before any work
    with output.build(request) as folder:            # .cellwright/new/; on an error nothing is left, the old one stays
        (folder / "metrics.json").write_text(...)

After a kill, the same command begins again.

**Jobs that can be resumed** (predict, fuse, train) write their results in place if there is no old one, and to ``new/``
while an old one is in its place::

    output = OutputFolder(out, "predict", same=("fuse",), earlier=earlier)
    unfinished = output.pending if overwrite else output.claim   # a `Claim`, or None
    ... read the records in output.progress_of(unfinished), compare unfinished.request with the request ...
    output.start(request, resume=unfinished)         # goes on where that one is, or:
    output.start(request)                            # begins; in ``new/`` if there is a result, else in place
    output.start(request, replaces=files)            # begins in ``new/``, to replace an unfinished job with these files
    try:
        for image in images:
            output.verify()                          # the folder is still there, and ours
            write to output.root, and then a record to output.progress
        output.complete(files)                       # {name: FileIdentity}, or names
    finally:
        output.close()                               # unfinished: the claim stays, and so do progress/ and new/

``output.root`` is ``out`` or ``out/.cellwright/new``, and ``output.place(path)`` is where a file below it will be in
the end, for paths that are stored relative to it (`WriteOptions.place`). A job in which some images failed calls
``complete(files, keep_progress=True)``; a later ``start(request, resume=output.claim)`` goes on with it in place.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

from cellwright.core.claim import (
    CLAIM,
    CONTROL,
    Claim,
    Files,
    changes,
    claim_above,
    files_below,
    is_as_written,
    is_inside,
    is_plain_file,
    remove_ours,
)
from cellwright.core.errors import FormatError, OutputError
from cellwright.core.events import plain
from cellwright.core.file_identity import FileIdentity
from cellwright.core.files import flush, output_error, remove, sweep
from cellwright.core.folder_lock import FolderBusy, FolderLock
from cellwright.core.text import count, listed

LOCK, PROGRESS, NEW = "lock", "progress", "new"
OTHER = "use `overwrite=True`, or choose another `out`"
# Files that file managers leave in folders; a folder with nothing else is empty.
_OF_DESKTOPS = (".DS_Store", "Thumbs.db", "desktop.ini")


class OutputFolder:
    """An output folder of a verb; see the module for how it is used. Creating one looks, and changes nothing.

    path: the folder; a link is followed, and stays. verb: what is shown of the command. same: other verbs with the same
    kind of output, which may be gone on with or replaced. earlier: what a folder without a claim is, if a version
    without claims wrote it: a claim, or None if it did not.

    claim: that on the folder, or None if it is new. pending: that on ``new/``.

    Raises `OutputError` for a file, a folder with other files, or the output of another verb or a part of it, and
    `FormatError` for a damaged record. If a new result was being moved in, that is finished.
    """

    def __init__(
        self,
        path: Path | str,
        verb: str,
        *,
        same: Iterable[str] = (),
        earlier: Callable[[Path], Claim | None] | None = None,
    ) -> None:
        self.shown, self.verb = Path(path), verb
        self._verbs, self._earlier = (verb, *same), earlier
        self._lock: FolderLock | None = None
        self._existed = True  # before `start`
        try:
            self.path = self.shown.resolve()
            self._refuse(claim_above(self.path), "is part of")
            self._look()
            if self.claim is not None and self.claim.state == "swapping":
                self._take_lock()
                try:
                    self._look()
                    self._check_swap()
                    self._finish_swap()
                    self._sweep()
                finally:
                    self.close()
                self._look()
        except (OSError, RuntimeError) as error:  # RuntimeError: a link that leads to itself
            got = error if isinstance(error, OSError) else OSError(str(error))
            raise output_error(self.shown, got) from error
        self.root = self.path
        self._refuse(None if self.claim is None or self.claim.verb in self._verbs else self.claim, "has")

    def _refuse(self, claim: Claim | None, what: str) -> None:
        """Raise `OutputError` if there is a claim of another verb."""
        if claim is not None:
            raise OutputError(
                f"this folder {what} the output of cellwright {ascii(claim.verb)[1:-1]}",
                where=self.shown,
                expected=f"a new folder, or one of cellwright {self.verb}",
                remedy="choose another `out`",
            )

    def _look(self) -> None:
        """Set ``claim`` and ``pending``."""
        self.claim: Claim | None = None
        self.pending: Claim | None = None
        control = self.path / CONTROL
        if os.path.lexists(self.path) and not self.path.is_dir():
            raise OutputError("the output folder is a file", where=self.shown, remedy="choose another `out`")
        for folder in (control, control / NEW, control / PROGRESS):
            if folder.is_symlink() or (folder.exists() and not folder.is_dir()):
                name = folder.relative_to(self.path)
                raise OutputError(f"{name} is not a folder", where=self.shown, remedy="choose another `out`")
        if not self.path.is_dir():
            return
        self.claim = Claim.read(self.path)
        if self.claim is not None:
            with suppress(FormatError):  # it is begun again
                self.pending = Claim.read(control / NEW)
            return
        entries = [entry.name for entry in self.path.iterdir() if entry.name not in (CONTROL, *_OF_DESKTOPS)]
        if entries and self._earlier is not None:
            self.claim = self._earlier(self.path)
        if entries and self.claim is None:
            raise OutputError(
                "this folder is not empty and not an output of this command",
                where=self.shown,
                got=listed(entries),
                expected=f"a new folder, or one of cellwright {self.verb}",
                remedy="choose another `out`",
            )

    # --- what is there

    @property
    def is_complete(self) -> bool:
        """Whether there is a complete result; `missing` may be part of it."""
        return self.claim is not None and self.claim.state == "complete"

    @property
    def missing(self) -> list[str]:
        """The files of the result that do not exist."""
        files = {} if self.claim is None else self.claim.files
        return [name for name in files if not (self.path / name).is_file()]

    def answers(self, request: Mapping[str, Any]) -> bool:
        """Whether there is a complete result of this request. Raises `OutputError` if it is one of another request."""
        if self.claim is None or not self.is_complete:
            return False
        if self.claim.request is None:
            raise OutputError("this output already exists", where=self.shown, remedy=OTHER)
        changed = changes(request, self.claim.request)
        if changed:
            got, problem = f"changed since: {', '.join(changed)}", "this output already exists, for another request"
            raise OutputError(problem, where=self.shown, got=got, remedy=OTHER)
        return not self.missing

    def check_replaceable(self, inputs: Iterable[Path | str] = (), files: Files | None = None) -> None:
        """Raise `OutputError` if files of the result were changed since, or if one is an ``inputs`` of the command.

        files: the files that would be removed, if the claim does not know them (an unfinished job).
        """
        files = self._known(files)
        changed = [name for name, identity in files.items() if not is_as_written(self.path, name, identity)]
        if changed:
            raise OutputError(
                "files of this output were changed after they were written, so it is not replaced",
                where=self.shown,
                got=f"{count(len(changed), 'file')} ({listed(changed)})",
                remedy="move the changed files to another folder, or choose another `out`",
            )
        for given in inputs:
            path = Path(given).resolve()
            if path.is_relative_to(self.path) and any((self.path / name).is_relative_to(path) for name in files):
                raise OutputError(
                    "an input of this command is part of the output that it would replace",
                    where=given,
                    remedy="choose another `out`",
                )

    def _known(self, files: Files | None) -> Files:
        return ({} if self.claim is None else self.claim.files) if files is None else files

    # --- writing

    def start(
        self,
        request: Mapping[str, Any],
        *,
        resume: Claim | None = None,
        replaces: Files | None = None,
        aside: bool = False,
    ) -> Path:
        """Lock and claim the folder; returns ``root``, where the result is written.

        resume: ``claim`` or ``pending``, to go on there. replaces: the files of the old result, if the claim does not
        know them. aside: write to ``new/`` even if there is no old result. Raises `FolderBusy` if the folder is in
        use, or has changed since this was created.
        """
        seen, self._existed = (self.claim, self.pending), self.path.is_dir()
        old = self._known(replaces)
        try:
            (self.path / CONTROL).mkdir(parents=True, exist_ok=True)
            self._take_lock()
            self._look()
            if (self.claim, self.pending) != seen:
                remedy = "run the same command again"
                raise FolderBusy("another process has just written this folder", where=self.shown, remedy=remedy)
            new = self.path / CONTROL / NEW
            is_aside = bool(old or aside) if resume is None else resume is seen[1]
            claim = Claim(self.verb, plain(dict(request)), "writing")
            if resume is None or not is_aside:
                remove(new)
            if is_aside:
                outer = claim
                if self.claim is not None and (old or self.claim.state == "complete"):
                    outer = replace(self.claim, files=old)
                if Claim.read(self.path) != outer:
                    outer.write(self.path)
                (new / CONTROL).mkdir(parents=True, exist_ok=True)
            self.root = new if is_aside else self.path
            if resume is None:
                remove(self.progress)
            replace(claim, files={} if resume is None else resume.files).write(self.root)
            self.progress.mkdir(exist_ok=True)
            self._look()
            self._sweep()
        except BaseException as error:
            if aside and self._lock is not None:
                self.discard()
            self.close()
            if isinstance(error, OSError):
                raise output_error(self.shown, error) from error
            raise
        return self.root

    @property
    def progress(self) -> Path:
        """The folder for the records of this job, after `start`."""
        return self.root / CONTROL / PROGRESS

    def root_of(self, claim: Claim | None) -> Path:
        """Where the files of ``claim`` or of ``pending`` are."""
        return self.path / CONTROL / NEW if claim is not None and claim is self.pending else self.path

    def progress_of(self, claim: Claim | None) -> Path:
        """The records of ``claim`` or of ``pending``; the folder need not exist."""
        return self.root_of(claim) / CONTROL / PROGRESS

    def place(self, path: Path) -> Path:
        """Where a file or folder below ``root`` will be when the result is complete."""
        return self.path / path.relative_to(self.root)

    def verify(self) -> None:
        """Raise `OutputError` if the folder was moved, removed or taken over since `start`."""
        assert self._lock is not None, "not started"
        self._lock.verify()

    def complete(self, files: Files | Iterable[str] | None = None, *, keep_progress: bool = False) -> None:
        """Declare the result complete, and move it to its place.

        files: every file of the result, relative to ``root``; with the identity that was recorded, or names only. None
        stands for all files in ``new/``. keep_progress: keep the records, for a result that lacks some images.

        Raises `OutputError` if a file is missing, if files of the old result were changed since, or if a file that is
        not ours is in the way; the new result then stays in ``new/``.
        """
        self._sweep()  # of workers that died
        self._complete(files, keep_progress=keep_progress)

    def _complete(
        self, files: Files | Iterable[str] | None, *, kept: Files | None = None, keep_progress: bool = False
    ) -> None:
        """See `complete`. kept: files of the old result that stay, unless they were written again."""
        self.verify()
        assert self.claim is not None
        try:
            written = {**(kept or {}), **self._written(files)}
            claim = Claim(self.verb, (self.pending or self.claim).request, "complete", written)
            if self.root == self.path:
                claim.write(self.path)
                if not keep_progress:
                    remove(self.progress)
            else:
                claim.write(self.root)
                old = self.claim.files
                swap = replace(claim, state="swapping", replaced=old, keeps_progress=keep_progress)
                self._check_way(swap)
                swap.write(self.path)
                self.claim = swap
                self._finish_swap()
            self._look()
        except OSError as error:
            raise output_error(self.shown, error) from error

    def _written(self, files: Files | Iterable[str] | None) -> Files:
        """The files with their identities; their content is on the disk."""
        if files is None:
            assert self.root != self.path, "files of others may be there"
            files = sorted(name for name in files_below(self.root) if not name.startswith(f"{CONTROL}/"))
        known = files if isinstance(files, Mapping) else dict.fromkeys(files)
        lost = [name for name in known if not is_plain_file(self.root, name)]
        if lost:
            raise OutputError(
                "files of this output are missing before it is complete",
                where=self.shown,
                got=f"{count(len(lost), 'file')} ({listed(lost)})",
                remedy="run the same command again",
            )
        for name in known:
            assert is_inside(name), name
            flush(self.root / name)
        return {name: known[name] or FileIdentity.of(self.root / name) for name in sorted(known)}

    def close(self) -> None:
        """Let other processes write the folder."""
        if self._lock is not None:
            self._lock.release()
            self._lock = None

    @contextmanager
    def build(
        self,
        request: Mapping[str, Any],
        *,
        updates: Iterable[str] | None = None,
        unless: Callable[[Path], bool] | None = None,
    ) -> Iterator[Path]:
        """A folder to write a whole result to, which is moved to its place at the end.

        updates: the files of the result that are written again, whatever their content is now; all others stay. unless:
        called with the folder when all is written; if it returns True, nothing is moved. On an error nothing is left
        of what was written, and an old result is as it was.
        """
        old: Files | None = None
        if updates is None:
            self.check_replaceable()
        else:
            now = {name: FileIdentity.of(self.path / name) for name in updates if is_plain_file(self.path, name)}
            old = {**self._known(None), **now}
        self.start(request, replaces=old, aside=True)
        try:
            yield self.root
            if unless is None or not unless(self.root):
                self._complete(None, kept={} if updates is None else old or {})
        except OSError as error:
            raise output_error(self.shown, error) from error
        finally:
            self.discard()
            self.close()

    def discard(self) -> None:
        """Remove a result that is not complete from ``new/``, and the claim and the folder if there is no other."""
        outer = Claim.read(self.path)
        if outer is not None and outer.state == "swapping":
            return
        remove(self.path / CONTROL / NEW)
        if outer is None or (outer.state == "writing" and not outer.files):
            remove(self.path / CONTROL / CLAIM)
            self.close()
            with suppress(OSError):  # not empty
                (self.path / CONTROL).rmdir()
                if not self._existed:
                    self.path.rmdir()

    # --- moving a new result in

    def _check_way(self, swap: Claim) -> None:
        """Raise `OutputError` if a new file would replace one that is not ours, or an old one was changed."""
        new = self.path / CONTROL / NEW
        coming = [name for name in swap.files if (new / name).exists()]
        in_way = [name for name in coming if name not in swap.replaced and os.path.lexists(self.path / name)]
        affected = {*coming, *(name for name in swap.replaced if name not in swap.files)} - {*in_way}
        in_way += [name for name in affected if not is_as_written(self.path, name, swap.replaced.get(name))]
        if in_way:
            raise OutputError(
                "the new result is complete, but files that cellwright did not write are in its place",
                where=self.shown,
                got=f"{count(len(in_way), 'file')} ({listed(in_way)})",
                remedy="move them to another folder, and run the same command again",
            )

    def _check_swap(self) -> None:
        """Look at the files of a result that another process began to move in, which may have ended by a power cut.

        Damaged ones that are still in ``new/`` are removed, so that they are missing and made again. Raises
        `OutputError` if one that was moved in is not as it was written: it may have been changed since.
        """
        swap, new = self.claim, self.path / CONTROL / NEW
        if swap is None or swap.state != "swapping":
            return
        changed = []
        for name, identity in swap.files.items():
            if identity is None:
                continue
            if os.path.lexists(new / name):
                if FileIdentity.of(new / name).digest == identity.digest:
                    continue
                self._check_way(swap)
                remove(new / name)
                remove_ours(self.path, name)  # of the old result
            elif is_plain_file(self.path, name) and FileIdentity.of(self.path / name).digest != identity.digest:
                changed.append(name)
        if changed:
            raise OutputError(
                "this output was interrupted while it was moved in, and files of it are damaged, or were changed since",
                where=self.shown,
                got=f"{count(len(changed), 'file')} ({listed(changed)})",
                remedy="move them to another folder, and run the same command again",
            )

    def _finish_swap(self) -> None:
        """Move the new result in; does what is left to do if this was interrupted."""
        swap = self.claim
        if swap is None or swap.state != "swapping":
            return
        self._check_way(swap)
        new, touched = self.path / CONTROL / NEW, {self.path}
        for name in swap.replaced:
            if name not in swap.files:
                remove_ours(self.path, name)
                touched |= {*(self.path / name).parents}
        for name in swap.files:
            if (new / name).exists():
                target = self.path / name
                target.parent.mkdir(parents=True, exist_ok=True)
                (new / name).replace(target)
                touched |= {*target.parents}
        progress = self.path / CONTROL / PROGRESS
        if not swap.keeps_progress:
            remove(progress)
        elif (new / CONTROL / PROGRESS).is_dir():
            remove(progress)
            (new / CONTROL / PROGRESS).replace(progress)
        for folder in touched:
            if folder.is_dir() and folder.is_relative_to(self.path):
                flush(folder)
        remove(new)  # first, so that nothing is taken for an unfinished result
        replace(swap, state="complete", replaced={}, keeps_progress=False).write(self.path)

    def _take_lock(self) -> None:
        self._lock = FolderLock.take(self.path / CONTROL / LOCK, self.shown, self.verb)

    def _sweep(self) -> None:
        """Remove temporary files of killed processes, from this folder and all plain ones below."""
        for folder, names, _ in os.walk(self.path):
            sweep(Path(folder))
            names[:] = [name for name in names if not name.startswith(".") or name == CONTROL]
