"""YAML from anyone ends in plain values or in one error, in bounded time."""

from __future__ import annotations

import pytest
import yaml

from cellwright.core.safe_yaml import parse_yaml

LISTS = "".join(f"x{k}: &b{k} [{', '.join([f'*b{k - 1}' if k else 'lol'] * 9)}]\n" for k in range(9))
MERGES = "a: &a0 {x: 1}\n" + "".join(
    f"a{k}: &a{k}\n  <<: [{', '.join([f'*a{k - 1}'] * 9)}]\n  y{k}: 1\n" for k in range(1, 9)
)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (LISTS, "more than 10000 values"),
        (MERGES, "more than 10000 values"),
        ("[" * 100_000, "deeper than 50"),
        ("- a\n" * 20_000, "more than 10000 values"),
        ("a: " + "x" * (1 << 20), "at most 1048576"),
        ("a: &a [*a]", "contains it"),
        ("a: *b", "undefined alias"),
        ("a: 2024-99-99", "line 1, column 4"),
        ("a: !!timestamp x", "line 1, column 4"),
        ("a: !!int ''", "line 1, column 4"),
        ("a: " + "9" * 5000, "a number of 5000 characters"),
        ("a: 0x" + "f" * 5000, "a number of 5002 characters"),
        ("a: " + "1:" * 5000 + "1", "a number of 10001 characters"),
        (r'a: "\UFFFFFFFF"', "character"),
        (r'a: "\ud800"', "not Unicode"),
        ("a: !!python/object/apply:os.system [ls]", "could not determine a constructor"),
        ("? [a]\n: b", "unhashable"),
        ("a: 1\na: 2", "'a' occurs twice"),
        ("a\0b", "not allowed"),
    ],
)
def test_odd_documents_are_refused(text: str, message: str) -> None:
    with pytest.raises(yaml.YAMLError) as caught:
        parse_yaml(text)
    assert message in str(caught.value)


def test_plain_documents_are_read_as_yaml_reads_them() -> None:
    text = "base: &base {a: 1, b: [2.5, yes, null]}\nover:\n  <<: *base\n  a: 2\nday: 2024-01-31\nagain: *base\n"
    assert parse_yaml(text) == yaml.safe_load(text)
