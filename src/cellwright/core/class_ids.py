"""Class ids, and the id of what has no class."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

NO_CLASS = -1
"""The class id of a region that is not annotated for any class. As an index it would be the last class."""


def values_of_class(class_ids: np.ndarray, values: Sequence[object] | np.ndarray, otherwise: object) -> np.ndarray:
    """The value of the class of each object (N,); ``otherwise`` for objects without a class.

    >>> values_of_class(np.array([1, NO_CLASS, 0]), ("a", "b"), "")
    array(['b', '', 'a'], dtype=object)
    """
    kinds = values.dtype if isinstance(values, np.ndarray) else object
    return np.array([*values, otherwise], kinds)[np.where(class_ids < 0, len(values), class_ids)]
