"""`show`: an image and its objects as matplotlib axes, for notebooks and papers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from cellwright.core.image import Image
from cellwright.core.instances import Instances
from cellwright.report.draw import draw_overlay

if TYPE_CHECKING:
    from matplotlib.axes import Axes


def show(
    image: Image, cells: Instances | None = None, *, class_names: Sequence[str] | None = None, ax: Axes | None = None
) -> Axes:
    """Draw an image with its objects outlined and return the axes; ticks are pixels of the image.

    cells: None draws the image alone. class_names: as `draw_overlay`; several classes get a legend.
    ax: None makes a new figure. The caller shows or saves it.
    """
    from matplotlib import pyplot

    cells = Instances.empty(image.image_hw) if cells is None else cells
    picture = draw_overlay(image, cells, class_names=class_names, legend=bool(cells.class_ids.max(initial=0)))
    if ax is None:
        ax = pyplot.subplots(layout="constrained")[1]
    width = image.image_hw[1]
    # Pixel (0, 0) covers [0, 1), as boxes and polygons have it.
    ax.imshow(picture, extent=(0, width, picture.shape[0], 0), interpolation="nearest")
    ax.set_title(f"{len(cells):,} object{'' if len(cells) == 1 else 's'}")
    return ax
