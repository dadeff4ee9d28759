"""Notes: what was assumed about an input or skipped in it, so that nothing happens silently."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from cellwright.core.text import count


@dataclass(frozen=True)
class Note:
    """Something that the user may want to know about one input.

    kind: a short sentence without details of this input; notes of the same kind are shown as one line.
    text: the full line, in which a parameter is named in backticks. where: the file or image, or "".
    """

    kind: str
    text: str
    where: str = ""


def summarise(notes: Iterable[Note], *, details: str = "", noun: str = "image") -> list[str]:
    """One line per kind, in order of first appearance: the text of a single note, or a count and an example.

    details: the file that lists every note, such as "summary.csv"; "" if there is none.

    >>> one = Note("the channel was assumed", "channel DAPI was assumed to show nuclei; choose with `channel`", "a.tif")
    >>> other = Note("the channel was assumed", "channel Hoechst was assumed to show nuclei", "b.tif")
    >>> summarise([one])
    ['a.tif: channel DAPI was assumed to show nuclei; choose with `channel`']
    >>> summarise([one, other], details="summary.csv")
    ['2 images: the channel was assumed, for example a.tif: channel DAPI was assumed to show nuclei; choose with \
`channel` (all in summary.csv)']
    """
    kinds: dict[str, list[Note]] = {}
    for note in notes:
        kinds.setdefault(note.kind, []).append(note)
    lines = []
    for kind, of_kind in kinds.items():
        first, n = of_kind[0], len({note.where for note in of_kind})
        own = f"{first.where}: {first.text}" if first.where else first.text
        if n == 1:
            lines.append(own)
        elif len({note.text for note in of_kind}) == 1:
            lines.append(f"{count(n, noun)}: {first.text}")
        else:
            lines.append(f"{count(n, noun)}: {kind}, for example {own}" + (f" (all in {details})" if details else ""))
    return lines


# Between the notes of one image in a cell of a table; a note may have semicolons of its own.
_BETWEEN = " | "


def joined(notes: Iterable[Note]) -> str:
    """The texts of the notes about one image in one line, each once; `separate` takes them apart.

    >>> joined([Note("kind", "one; choose"), Note("kind", "another"), Note("kind", "another")])
    'one; choose | another'
    """
    return _BETWEEN.join(dict.fromkeys(note.text for note in notes))


def separate(text: str) -> list[str]:
    """The texts that `joined` has put together.

    >>> separate("one; choose | another"), separate("")
    (['one; choose', 'another'], [])
    """
    return [note for note in text.split(_BETWEEN) if note]


def with_where(notes: Sequence[Note], where: str) -> tuple[Note, ...]:
    """The notes, with ``where`` set in those that have none.

    >>> with_where([Note("kind", "text")], "a.tif")
    (Note(kind='kind', text='text', where='a.tif'),)
    """
    return tuple(note if note.where else Note(note.kind, note.text, where) for note in notes)
