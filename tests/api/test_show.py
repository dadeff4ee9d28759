"""`cellwright.show`: what it accepts and draws."""

from __future__ import annotations

from collections.abc import Iterator

import matplotlib as mpl
import numpy as np
import pytest
from matplotlib import pyplot
from matplotlib.axes import Axes

import cellwright as cw
from cellwright.core.errors import InputError, UsageError

LABELS = np.zeros((20, 30), np.int64)
LABELS[2:6, 3:8], LABELS[10:18, 15:25] = 4, 7


@pytest.fixture(autouse=True)
def _no_windows(real_charts: None) -> Iterator[None]:
    mpl.use("Agg")
    yield
    pyplot.close("all")


@pytest.mark.parametrize("dtype", ["uint8", "uint16", "int64"])
def test_label_arrays_are_drawn(dtype: str) -> None:
    axes = cw.show(10 * LABELS.astype(np.uint16), LABELS.astype(dtype))
    assert isinstance(axes, Axes)
    assert axes.get_title() == "2 objects"
    drawn = axes.images[0].get_array()
    assert drawn is not None
    assert drawn.shape == (20, 30, 3)
    assert len(np.unique(drawn[LABELS == 4], axis=0)) > 1  # an outline on a flat object


def test_axes_are_in_pixels_of_the_image() -> None:
    axes = cw.show(LABELS * 1.0, LABELS)
    assert axes.get_xlim() == (0, 30)
    assert axes.get_ylim() == (20, 0)


def test_axes_class_names_and_an_image_alone() -> None:
    axes = pyplot.subplots()[1]
    classed = cw.Instances.from_masks(cw.MaskSet.from_label_map(LABELS)[0], class_ids=np.array([0, 1]))
    assert cw.show(LABELS * 1.0, classed, class_names=["live", "dead"], ax=axes) is axes
    assert axes.get_title() == "2 objects"
    assert axes.images[0].get_array().shape[0] > 20  # the legend below
    assert cw.show(LABELS * 1.0).get_title() == "0 objects"
    with pytest.raises(InputError, match="differ in size"):
        cw.show(np.zeros((5, 5)), LABELS)
    with pytest.raises(UsageError, match="not the objects of an image"):
        cw.show(LABELS * 1.0, 3)  # type: ignore[arg-type]
