"""Error messages, and errors passed between processes."""

from __future__ import annotations

import pickle

import pytest

import cellwright
from cellwright.core import errors

KINDS = [kind for kind in vars(errors).values() if isinstance(kind, type) and issubclass(kind, errors.CellwrightError)]


def test_a_message_names_everything_and_survives_pickling() -> None:
    error = errors.FormatError("broken", where="a.png", got=1, expected=2, remedy="save it again")
    again = pickle.loads(pickle.dumps(error))
    assert type(again) is errors.FormatError
    assert str(again) == str(error) == "broken\n  where: a.png\n  got: 1\n  expected: 2\n  fix: save it again"


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)
def test_every_error_class_is_public(kind: type) -> None:
    assert getattr(cellwright, kind.__name__) is kind
    assert kind.__module__ == "cellwright"
    assert kind.__doc__
