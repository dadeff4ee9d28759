"""The HTML page of a report: what it consists of, and how it is written as one file that needs nothing else.

Pictures are embedded, charts are SVG, and there is no script: a page can be mailed, printed and opened in any browser.
Its bytes depend only on its content.
"""

from __future__ import annotations

import base64
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

import numpy as np
from markupsafe import Markup, escape

from cellwright.core.text import printable
from cellwright.core.versions import version_of

if TYPE_CHECKING:
    from jinja2 import Template

PICTURE_PX = 600  # longer side of an embedded picture
_JPEG_QUALITY, MAX_LISTED = 82, 40
_TEMPLATE = Path(__file__).parent / "templates" / "report.html"

Cell = str | int | float | None


@dataclass(frozen=True)
class Table:
    """A table. n_text: the first columns, which hold text; the others hold numbers. note: below it."""

    kind: ClassVar = "table"
    columns: Sequence[str]
    rows: Sequence[Sequence[Cell]]
    title: str = ""
    note: str = ""
    n_text: int = 1


@dataclass(frozen=True)
class Facts:
    """Names and values, such as the options of a command. Values that are empty are omitted."""

    kind: ClassVar = "facts"
    rows: Sequence[tuple[str, Cell]]
    title: str = ""

    @property
    def known(self) -> list[tuple[str, Cell]]:
        """Those that have a value."""
        return [(name, value) for name, value in self.rows if value not in (None, "")]


@dataclass(frozen=True)
class Notes:
    """Sentences. Those that start with "warning: " come first and stand out."""

    kind: ClassVar = "notes"
    lines: Sequence[str]
    title: str = ""

    @property
    def sorted(self) -> list[tuple[bool, str]]:
        """Whether it is a warning, and the text."""
        split = [(line.startswith("warning: "), _sentence(line.removeprefix("warning: "))) for line in self.lines]
        return sorted(split, key=lambda pair: not pair[0])


@dataclass(frozen=True)
class Charts:
    """Charts side by side: title, SVG, and a sentence below each."""

    kind: ClassVar = "charts"
    charts: Sequence[tuple[str, Markup, str]]
    title: str = ""


@dataclass(frozen=True)
class Picture:
    """An embedded picture: caption, the bytes of a JPEG or PNG file, and its size in pixels."""

    caption: str
    data: bytes
    hw: tuple[int, int]

    @property
    def uri(self) -> str:
        """The picture as a data URI."""
        kind = "png" if self.data.startswith(b"\x89PNG") else "jpeg"
        return f"data:image/{kind};base64,{base64.b64encode(self.data).decode()}"


@dataclass(frozen=True)
class Pictures:
    """Pictures in a grid. note: such as how many are not shown. columns: on a wide page."""

    kind: ClassVar = "pictures"
    pictures: Sequence[Picture]
    title: str = ""
    note: str = ""
    columns: int = 3


@dataclass(frozen=True)
class Text:
    """A paragraph."""

    kind: ClassVar = "text"
    text: str


@dataclass(frozen=True)
class Listing:
    """A file, shown folded."""

    kind: ClassVar = "listing"
    title: str
    text: str


@dataclass(frozen=True)
class Command:
    """A command line. options: by the names of the parameters; several values are written one after the other."""

    kind: ClassVar = "command"
    verb: str
    words: Sequence[str]
    options: Mapping[str, object] = field(default_factory=dict)
    title: str = ""

    @property
    def arguments(self) -> list[tuple[str, list[str]]]:
        """The options with what is typed after each; for a switch, nothing."""
        pairs = []
        for name, value in self.options.items():
            if value is None or value is False or value in ((), [], ""):
                continue
            values = [] if value is True else value if isinstance(value, list | tuple) else [value]
            pairs.append((name, [_typed(one) for one in values]))
        return pairs

    @property
    def typed(self) -> list[str]:
        """The words as they are typed."""
        return [_typed(word) for word in self.words]


Part = Table | Facts | Notes | Charts | Pictures | Text | Listing | Command


@dataclass(frozen=True)
class Section:
    """A heading and what is below it; a section without parts is not shown."""

    title: str
    parts: Sequence[Part]


@dataclass(frozen=True)
class Page:
    """A report. kind: what it reports on, such as "Prediction". figures: the most important values, and what they are.

    state: a sentence that must not be overlooked, such as that a run is not finished.
    """

    kind: str
    title: str
    figures: Sequence[tuple[Cell, str]]
    sections: Sequence[Section]
    subtitle: str = ""
    state: str = ""

    def html(self) -> str:
        """The page as one file."""
        sections = [Section(one.title, [part for part in one.parts if part is not None]) for one in self.sections]
        shown = [section for section in sections if section.parts]
        return _template().render(page=self, sections=shown, version=version_of("cellwright") or "")


@cache
def _template() -> Template:
    from jinja2 import Environment, StrictUndefined

    made = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    made.filters |= {"cell": cell, "safe_text": lambda text: printable(str(text)), "with_names": _with_names}
    return made.from_string(_TEMPLATE.read_text(encoding="utf-8"))


def _with_names(text: str) -> Markup:
    """Text in which names of parameters, in backticks, are set as code.

    >>> _with_names("choose <one> with `channel`")
    Markup('choose &lt;one&gt; with <code>channel</code>')
    """
    return Markup(re.sub(r"`([\w.=]+)`", r"<code>\1</code>", str(escape(printable(text)))))


def cell(value: Cell) -> str:
    """A value as it is shown: numbers with three significant digits or as whole numbers, a dash for none.

    >>> [cell(value) for value in (12345, 0.51234, 1234.5, None, math.nan, "a", 7e-06, 100.0)]
    ['12,345', '0.512', '1,234', '-', '-', 'a', '7e-06', '100']
    """
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return "-"
    if isinstance(value, bool | str):
        return printable(str(value))
    if isinstance(value, int | np.integer):
        return f"{value:,}"
    value = float(value)
    return f"{value:,.0f}" if abs(value) >= 1000 or value == round(value, 0) else f"{value:.3g}"


def decimals(value: float | None, digits: int = 3) -> str:
    """A metric with a fixed number of decimal places.

    >>> decimals(0.5), decimals(None)
    ('0.500', '-')
    """
    return "-" if value is None or not math.isfinite(value) else f"{value:.{digits}f}"


def embedded(path: Path, caption: str = "", *, longest_px: int = PICTURE_PX) -> Picture | None:
    """A picture of a file, reduced if it is large; None if the file cannot be read.

    Drawings with few colours stay PNG, which is smaller and sharper.
    """
    import cv2

    try:
        content = path.read_bytes()
    except OSError:
        return None
    pixels = cv2.imdecode(np.frombuffer(content, np.uint8), cv2.IMREAD_COLOR) if content else None
    if pixels is None:
        return None
    return embedded_pixels(np.asarray(pixels)[:, :, ::-1], caption, longest_px=longest_px, original=content)


def embedded_pixels(
    rgb: np.ndarray, caption: str = "", *, longest_px: int = PICTURE_PX, original: bytes | None = None
) -> Picture:
    """A picture of uint8 RGB (h, w, 3). original: the file, kept if it is small enough as it is."""
    import cv2

    scale = min(longest_px / max(rgb.shape[:2]), 1.0)
    if scale < 1:
        size_wh = (max(round(rgb.shape[1] * scale), 1), max(round(rgb.shape[0] * scale), 1))
        rgb = cv2.resize(rgb, size_wh, interpolation=cv2.INTER_AREA)
    done, encoded = cv2.imencode(".jpg", rgb[:, :, ::-1], [cv2.IMWRITE_JPEG_QUALITY, _JPEG_QUALITY])
    assert done
    data = encoded.tobytes()
    if scale == 1 and original is not None and len(original) < 1.2 * len(data):
        data = original
    return Picture(caption, data, (rgb.shape[0], rgb.shape[1]))


def listed_rows(rows: Sequence[Sequence[Cell]], rest: str) -> tuple[list[Sequence[Cell]], str]:
    """The first ``MAX_LISTED`` rows of a table, and a sentence that says where the others are; "" if all are shown."""
    note = f"The first {MAX_LISTED} of {len(rows):,} rows; {rest} has them all." if len(rows) > MAX_LISTED else ""
    return list(rows[:MAX_LISTED]), note


def joined(values: object) -> str:
    """Values as a list in a sentence; a single value as it is, and nothing for None.

    >>> joined(["a", 2]), joined(0.5), joined(None), joined("abc")
    ('a, 2', '0.5', '', 'abc')
    """
    if values is None:
        return ""
    return str(values) if isinstance(values, str) or not isinstance(values, Iterable) else ", ".join(map(str, values))


def _typed(word: object) -> str:
    """A word of a command line; quoted if a shell would take it for something else."""
    import shlex

    text = f"{word:g}" if isinstance(word, float) else str(word)
    return shlex.quote(printable(text)) if text else "''"


def _sentence(text: str) -> str:
    return text[:1].upper() + text[1:] + ("" if text.endswith((".", "!", "?", ":")) else ".") if text else text
