"""The streaming reader gives what json.load gives, wherever its window ends."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cellwright.core.errors import FormatError, InputError
from cellwright.data.formats import json_stream
from cellwright.data.formats.json_stream import stream_json

STREAMED = frozenset({"images", "annotations"})
LEAVES = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=30)
VALUES = st.recursive(
    LEAVES,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=5), inner, max_size=4),
    max_leaves=12,
)


def collect(path: Path) -> dict[str, Any]:
    """The file as json.load would return it, assembled from its elements, whose spans must contain the same text."""
    raw = path.read_bytes()
    got: dict[str, Any] = {}
    for element in stream_json(path, STREAMED):
        value = element.text_value()
        assert json.loads(raw[element.start : element.end].decode()) == value
        if element.whole:
            got[element.section] = value
        elif element.key is None:
            got.setdefault(element.section, []).append(value)
        else:
            got.setdefault(element.section, {})[element.key] = value
    return got


@given(
    document=st.fixed_dictionaries(
        {"info": VALUES, "images": st.lists(VALUES, min_size=1, max_size=5), "tail": VALUES},
        optional={"annotations": st.dictionaries(st.text("abc123", max_size=6), VALUES, min_size=1, max_size=5)},
    ),
    indent=st.sampled_from([None, 0, 3]),
    escaped=st.booleans(),
    window=st.integers(1, 40),
)
def test_equals_json_load(
    tmp_path_factory: pytest.TempPathFactory, document: dict, indent: int | None, escaped: bool, window: int
) -> None:
    path = tmp_path_factory.mktemp("json") / "a.json"
    text = json.dumps(document, indent=indent, ensure_ascii=escaped)
    path.write_bytes(text.encode("utf-8", "surrogatepass") if escaped else text.encode("utf-8", "replace"))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(json_stream, "CHUNK_BYTES", window)
        assert collect(path) == json.loads(path.read_bytes().decode())


@pytest.mark.parametrize("window", [1, 2, 3, 1000])
def test_numbers_strings_and_bom_at_the_end_of_the_window(tmp_path: Path, window: int) -> None:
    path = tmp_path / "a.json"
    path.write_bytes('\ufeff [12.5, 1e-7, -0.25, "zażółć \\" ]", {"µ": [1, 2]}, 123456789012345678]\n'.encode())
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(json_stream, "CHUNK_BYTES", window)
        got = [element.text_value() for element in stream_json(path, STREAMED)]
    assert got == [12.5, 1e-7, -0.25, 'zażółć " ]', {"µ": [1, 2]}, 123456789012345678]


@pytest.mark.parametrize(
    ("text", "place", "problem"),
    [
        ('{"images": [{"id": 1}\n, {"id": }]}', "line 2, column 10", "Expecting value"),
        ('{"images": [{"id": 1}', "line 1, column 22", "the end of the file"),
        ('{"images": [{"id": 1}] "x": 2}', "line 1, column 24", "expected: ','"),
        ('{"info": {}, images: []}', "line 1, column 14", "double quotes"),
        ("[1, 2] 3", "line 1, column 8", "expected: the end of the file"),
        ('"text"', "line 1, column 1", "an object or a list"),
        ("", "line 1, column 1", "an object or a list"),
        ("{'images': []}", "line 1, column 2", "double quotes"),
    ],
)
@pytest.mark.parametrize("window", [4, 1 << 20])
def test_errors_name_line_and_column(tmp_path: Path, text: str, place: str, problem: str, window: int) -> None:
    (tmp_path / "a.json").write_text(text)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(json_stream, "CHUNK_BYTES", window)
        with pytest.raises(FormatError) as caught:
            list(stream_json(tmp_path / "a.json", STREAMED))
    assert f"a.json, {place}" in str(caught.value)
    assert problem in str(caught.value)


def test_an_error_is_raised_before_the_whole_file_is_read(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    path.write_bytes(b'{"images": [{"id": 1,, ' + b" " * 5_000_000)
    with pytest.raises(FormatError, match="line 1, column 22"):
        list(stream_json(path, STREAMED))


def test_absent_file(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="No such file"):
        list(stream_json(tmp_path / "a.json", STREAMED))
