"""`show`: an image with its objects on matplotlib axes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from cellwright.api.inputs import ImageLike, ObjectsLike, as_image, as_instances
from cellwright.core.instances import Instances
from cellwright.core.text import count

if TYPE_CHECKING:
    from matplotlib.axes import Axes


def show(
    image: ImageLike,
    cells: ObjectsLike | None = None,
    *,
    class_names: Sequence[str] | None = None,
    ax: Axes | None = None,
) -> Axes:
    """Draw an image with its objects outlined.

    Args:
        image: an `Image`, an array (H, W) or (H, W, C), or a path. Contrast is stretched for display unless the image
            is 8-bit colour.
        cells: `Instances`, a label array (H, W) of any integer type with 0 as background, or the path of a label image;
            None draws only the image.
        class_names: names of the classes 0..K-1, for the legend that is shown if there are several.
        ax: the axes to draw on; None makes a new figure.

    Returns:
        The matplotlib axes, in pixels; ``ax.figure.savefig`` saves them.

    Raises:
        InputError: image and objects differ in size, or an array is not an image or a label array.
        UsageError: an unsupported type.

    Example:
        >>> import matplotlib
        >>> matplotlib.use("Agg")  # no screen
        >>> import cellwright as cw, numpy as np
        >>> labels = np.zeros((20, 30), int)
        >>> labels[2:6, 3:8], labels[10:18, 15:25] = 1, 2
        >>> ax = cw.show(labels * 100.0, labels)
        >>> ax.get_title()
        '2 objects'
    """
    from matplotlib import pyplot

    from cellwright.report.draw import draw_overlay

    converted = as_image(image)
    instances = Instances.empty(converted.image_hw) if cells is None else as_instances(cells)
    has_classes = bool(instances.class_ids.max(initial=0))
    picture = draw_overlay(converted, instances, class_names=class_names, legend=has_classes)
    if ax is None:
        ax = pyplot.subplots(layout="constrained")[1]
    # Pixel (0, 0) covers [0, 1), as in boxes and polygons.
    ax.imshow(picture, extent=(0, converted.image_hw[1], picture.shape[0], 0), interpolation="nearest")
    ax.set_title(count(len(instances), "object"))
    return ax
