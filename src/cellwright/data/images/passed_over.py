"""Files that look like images and are not read, so that nobody takes a part of a folder for the whole."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterator, Sequence
from pathlib import Path

from cellwright.core.files import walk
from cellwright.core.notes import Note
from cellwright.core.text import count, listed
from cellwright.data.images.names import IMAGE_SUFFIXES, is_own_output
from cellwright.data.images.slide import SLIDE_SUFFIXES
from cellwright.data.images.vendor import CONVERTED, PLUGINS, UNREADABLE_SLIDES, advice, is_readable
from cellwright.data.images.zarr import ZARR_SUFFIXES, is_zarr_name

OUTPUT = "named like an output of cellwright"
HIDDEN = "hidden"
_MAX_ENTRIES = 200_000


def files_passed_over(root: Path) -> dict[Path, str]:
    """Images below ``root`` that are not read, and why: a suffix, `OUTPUT` or `HIDDEN`."""
    found: dict[Path, str] = {}
    for entry in _entries(root):
        suffix, hidden = entry.suffix.lower(), entry.name.startswith(".")
        if is_readable(entry.name):
            continue
        if is_zarr_name(entry.name):
            found[entry] = next(known for known in ZARR_SUFFIXES if entry.name.lower().endswith(known))
        elif suffix in vendor_kinds() and not hidden and entry.is_file():
            found[entry] = suffix
        elif suffix in IMAGE_SUFFIXES and entry.is_file() and not entry.name.startswith("._"):
            if hidden:
                found[entry] = HIDDEN
            elif is_own_output(entry.name):
                found[entry] = OUTPUT
    return found


def _entries(root: Path) -> Iterator[Path]:
    """Files and Zarr folders below ``root``; not those in hidden folders and in outputs of cellwright."""
    for folder in {root, *(file.parent for file in walk(root, problems=[]))}:
        try:
            entries = sorted(folder.iterdir())[:_MAX_ENTRIES]
        except OSError:
            continue
        if any((folder / name).is_file() for name in ("dataset.json", "predictions.json")):
            continue
        yield from (entry for entry in entries if entry.is_file() or entry.suffix.lower() == ".zarr")


def passed_over_note(root: Path, kinds: Collection[str] | None = None) -> Note | None:
    """One line about the images in a folder that are not read; None if there are none.

    kinds: those to count; None counts all. "6 files were not read: 1 .czi, 4 .svs, 1 hidden; for .czi: ...".
    """
    found = {file: why for file, why in files_passed_over(root).items() if kinds is None or why in kinds}
    if not found:
        return None
    counts = Counter(found.values())
    parts = [f"{n} {why}" + _example(found, why) for why, n in sorted(counts.items())]
    hints = Counter(advice(why) for why in sorted(counts) if advice(why))
    by_hint = {hint: [why for why in sorted(counts) if advice(why) == hint] for hint in hints}
    advised = [f"for {', '.join(suffixes)}: {hint}" for hint, suffixes in by_hint.items()]
    verb = "was" if len(found) == 1 else "were"
    text = "; ".join(
        [f"{count(len(found), 'file')} {verb} not read: {', '.join(parts)}", *advised, "see docs/formats.md"]
    )
    return Note("files were not read", text, root.name or str(root))


def results_note(root: Path) -> Note | None:
    """One line about folders of results below ``root`` (predictions and the like), which are not read."""
    results: list[tuple[Path, str]] = []
    for _ in walk(root, problems=[], results=results):
        pass
    below = [(folder, kind) for folder, kind in results if folder != root]
    if not below:
        return None
    names = [f"{folder.relative_to(root).as_posix()} ({kind})" for folder, kind in below]
    text = f"skipped {count(len(below), 'folder')} of results of cellwright: {listed(names)}"
    return Note("folders of results were skipped", text, root.name or str(root))


def vendor_kinds() -> Sequence[str]:
    """The suffixes of vendors' images and other formats that are not read."""
    return sorted({*SLIDE_SUFFIXES, *UNREADABLE_SLIDES, *ZARR_SUFFIXES, *CONVERTED, *PLUGINS})


def _example(found: dict[Path, str], why: str) -> str:
    names = [file.name for file, reason in found.items() if reason == why]
    return "" if why.startswith(".") else f" ({names[0]}{', ...' if len(names) > 1 else ''})"
