"""Reads a JSON file of any size element by element, and tells where in the file each element stands.

A file of annotations is one object with a few long lists in it, or one long list. Holding it parsed costs ten times its
size in memory; here one element is parsed at a time. The bytes are taken as Latin-1, so that a position in the text is
a position in the file: JSON's own characters are ASCII, and UTF-8 never uses ASCII bytes for anything else. Elements
that may hold text are decoded as UTF-8 in `Element.text_value`.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from cellwright.core.errors import FormatError
from cellwright.core.files import unreadable

CHUNK_BYTES = 1 << 20
# One element longer than this is no annotation.
MAX_ELEMENT_BYTES = 1 << 28
WHITESPACE = " \t\n\r"
BYTE_ORDER_MARK = "\xef\xbb\xbf"


@dataclass(frozen=True)
class Element:
    """One value of the file.

    section: the top-level key it stands under; "" in a file that is one list.
    key: its own key where the section is an object, else None.
    value: parsed, with text not yet decoded (use `text_value` where strings matter).
    start, end: where in the file it stands, bytes.
    whole: True where the value is the whole section (a section that is not streamed).
    """

    section: str
    key: str | None
    value: Any
    start: int
    end: int
    raw: str
    whole: bool = False

    def text_value(self) -> Any:
        """The value with its strings decoded as UTF-8; `UnicodeDecodeError` where they are not UTF-8."""
        return self.value if self.raw.isascii() else json.loads(self.raw.encode("latin-1").decode("utf-8"))


def stream_json(path: Path, streamed: frozenset[str]) -> Iterator[Element]:
    """The elements of a file, in file order.

    A top-level list gives its elements in section "". A top-level object gives the elements of its sections named in
    ``streamed`` (lists and objects alike) one by one, and every other section as one whole element. An empty streamed
    section gives nothing. Raises `FormatError` naming file, line and column, `InputError` for an unreadable file.
    """
    try:
        with path.open("rb") as file:
            yield from _Reader(path, file).elements(streamed)
    except OSError as error:
        raise unreadable(path, error) from error


class _Reader:
    """A window of the file's text that moves on, and the place of its first character."""

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
        """Move to each value of an object (yielding its key) or list (yielding ""); the caller takes the value."""
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
        # Filling keeps the text from the element's first character on, so only its position moves.
        start = self._start + first
        value = self._value()
        begin = start - self._start
        return Element(section, key, value, start, self._start + self._at, self._text[begin : self._at], whole)

    def _value(self) -> Any:
        """Parse the value at the current place, reading on where it passes the end of the window."""
        while True:
            try:
                value, end = self._decoder.raw_decode(self._text, self._at)
                # A number near the window's end may go on behind it ("12." and then "5").
                if end + 8 < len(self._text) or self._ended:
                    self._at = end
                    return value
            except json.JSONDecodeError as error:
                in_the_middle = error.pos + 16 < len(self._text) and "Unterminated string" not in error.msg
                too_long = len(self._text) - self._at > MAX_ELEMENT_BYTES
                if self._ended or in_the_middle or too_long:
                    self._fail(error.msg, min(error.pos, len(self._text)))
            except RecursionError:
                self._fail("a value that is less deeply nested", self._at)
            except ValueError:  # Python converts no whole number of thousands of digits
                self._fail("numbers of fewer digits", self._at)
            self._fill()

    def _peek(self) -> str:
        """The next character that is not white space; "" at the end of the file."""
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
        """Drop what has been read and append at least as much as is kept, so that long elements cost linear time."""
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
        found = self._text[at : at + 20]
        raise FormatError(
            "this file is not valid JSON",
            where=f"{self._path}, line {line}, column {column}",
            got=repr(found) if found else "the end of the file",
            expected=expected,
            remedy="write or download the file again",
        )
