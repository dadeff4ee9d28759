"""Read a JSON file of any size element by element, with the position of each element in the file.

A file of annotations is one object that contains a few long lists, or one long list. Parsed as a whole it would take
ten times its size in memory, so this module parses one element at a time. Bytes are decoded as Latin-1, so that
positions in the text are positions in the file. This is safe because JSON's own characters are ASCII, and UTF-8 uses
ASCII bytes for nothing else. `Element.text_value` decodes an element that may contain text as UTF-8.
"""

from __future__ import annotations

import io
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from cellwright.core.errors import FormatError
from cellwright.core.files import unreadable

CHUNK_BYTES = 1 << 20
# No annotation is longer than this.
MAX_ELEMENT_BYTES = 1 << 28
WHITESPACE = " \t\n\r"
BYTE_ORDER_MARK = "\xef\xbb\xbf"


@dataclass(frozen=True)
class Element:
    """One value in the file.

    section: the top-level key that contains it; "" if the file is one list.
    key: its own key if the section is an object, else None.
    value: the parsed value, in which strings are not yet decoded (use `text_value` if strings matter).
    start, end: first and last-plus-one byte in the file.
    raw: the text of the value.
    whole: True if the value is a whole section (one that is not streamed).
    """

    section: str
    key: str | None
    value: Any
    start: int
    end: int
    raw: str
    whole: bool = False

    def text_value(self) -> Any:
        """The value with its strings decoded as UTF-8; raises `UnicodeDecodeError` if they are not UTF-8."""
        return self.value if self.raw.isascii() else json.loads(self.raw.encode("latin-1").decode("utf-8"))


def stream_json(path: Path, streamed: frozenset[str], content: bytes | None = None) -> Iterator[Element]:
    """Yield the elements of a file (or of its ``content``, if that was decoded before), in file order.

    A top-level list yields its elements in section "". A top-level object yields the elements of the sections named in
    ``streamed`` (lists or objects) one by one, and each other section as one element. An empty streamed section yields
    nothing. Raises `FormatError` that names file, line and column, and `InputError` for an unreadable file.
    """
    try:
        with path.open("rb") if content is None else io.BytesIO(content) as file:
            yield from _Reader(path, file).elements(streamed)
    except OSError as error:
        raise unreadable(path, error) from error


class _Reader:
    """A moving window of the text of a file, and the position of its first character."""

    def __init__(self, path: Path, file: BinaryIO) -> None:
        self._path, self._file = path, file
        self._text, self._at, self._start, self._lines, self._line_start = "", 0, 0, 0, 0
        self._ended = False
        self._decoder = json.JSONDecoder()

    def elements(self, streamed: frozenset[str]) -> Iterator[Element]:
        while len(self._text) < len(BYTE_ORDER_MARK) and not self._ended:
            self._fill()
        if self._text.startswith(BYTE_ORDER_MARK):
            self._at = len(BYTE_ORDER_MARK)
        opening = self._peek()
        if opening == "[":
            yield from self._container("")
        elif opening == "{":
            for section in self._entries("{", "}"):
                if section in streamed and self._peek() in ("[", "{"):
                    yield from self._container(section)
                else:
                    yield self._element(section, None, whole=True)
        else:
            self._fail("an object or a list", self._at)
        if self._peek() != "":
            self._fail("the end of the file", self._at)

    def _container(self, section: str) -> Iterator[Element]:
        pair = "{}" if self._peek() == "{" else "[]"
        for key in self._entries(*pair):
            yield self._element(section, key if pair == "{}" else None, whole=False)

    def _entries(self, opening: str, closing: str) -> Iterator[str]:
        """Move to each value of an object (yielding its key) or list (yielding ""); the caller parses the value."""
        self._expect(opening)
        if self._peek() == closing:
            self._at += 1
            return
        while True:
            key = ""
            if opening == "{":
                if self._peek() != '"':
                    self._fail("a key in double quotes", self._at)
                key = self._value()
                self._expect(":")
            self._peek()
            yield key
            if self._peek() == closing:
                self._at += 1
                return
            self._expect(",")

    def _element(self, section: str, key: str | None, *, whole: bool) -> Element:
        self._peek()
        first = self._at
        # `_fill` keeps the text from the first character of the element on, so only its index changes.
        start = self._start + first
        value = self._value()
        begin = start - self._start
        return Element(section, key, value, start, self._start + self._at, self._text[begin : self._at], whole)

    def _value(self) -> Any:
        """Parse the value at the current position, reading more of the file if it extends past the window."""
        while True:
            try:
                value, end = self._decoder.raw_decode(self._text, self._at)
                # A number near the end of the window may continue after it ("12." and then "5").
                if end + 8 < len(self._text) or self._ended:
                    self._at = end
                    return value
            except json.JSONDecodeError as error:
                in_the_middle = error.pos + 16 < len(self._text) and "Unterminated string" not in error.msg
                too_long = len(self._text) - self._at > MAX_ELEMENT_BYTES
                if self._ended or in_the_middle or too_long:
                    self._fail(error.msg, min(error.pos, len(self._text)))
            except RecursionError:
                self._fail("a less deeply nested value", self._at)
            except ValueError:  # Python refuses to convert integers of thousands of digits
                self._fail("a number with fewer digits", self._at)
            self._fill()

    def _peek(self) -> str:
        """The next character that is not whitespace; "" at the end of the file."""
        while True:
            while self._at < len(self._text):
                if self._text[self._at] not in WHITESPACE:
                    return self._text[self._at]
                self._at += 1
            if self._ended:
                return ""
            self._fill()

    def _expect(self, character: str) -> None:
        if self._peek() != character:
            self._fail(f"{character!r}", self._at)
        self._at += 1

    def _fill(self) -> None:
        """Drop the parsed text and append at least as much as is kept, so that long elements take linear time."""
        done = self._text[: self._at]
        self._lines += done.count("\n")
        if "\n" in done:
            self._line_start = self._start + done.rindex("\n") + 1
        self._start += self._at
        kept = self._text[self._at :]
        more = self._file.read(max(CHUNK_BYTES, len(kept)))
        self._ended = not more
        self._text, self._at = kept + more.decode("latin-1"), 0

    def _fail(self, expected: str, at: int) -> None:
        before = self._text[:at]
        line = self._lines + before.count("\n") + 1
        last = before.rfind("\n")
        column = at - last if last >= 0 else self._start + at - self._line_start + 1
        got = self._text[at : at + 20]
        raise FormatError(
            "this file is not valid JSON",
            where=f"{self._path}, line {line}, column {column}",
            got=repr(got) if got else "the end of the file",
            expected=expected,
            remedy="write or download the file again",
        )
