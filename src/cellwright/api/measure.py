"""`measure`: one table of measurements per image."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, overload

from cellwright.api.inputs import ImageLike, ObjectsLike, as_images, as_instances_list
from cellwright.core.errors import InputError
from cellwright.core.text import count
from cellwright.data.images.calibration import as_pixel_size

if TYPE_CHECKING:
    import pandas as pd


@overload
def measure(
    cells: ObjectsLike,
    image: ImageLike | None = None,
    *,
    class_names: Sequence[str] | None = None,
    pixel_size: float | Sequence[float] | None = None,
) -> pd.DataFrame: ...
@overload
def measure(
    cells: Iterable[ObjectsLike],
    image: Iterable[ImageLike] | None = None,
    *,
    class_names: Sequence[str] | None = None,
    pixel_size: float | Sequence[float] | None = None,
) -> list[pd.DataFrame]: ...
def measure(cells, image=None, *, class_names=None, pixel_size=None):
    """Measure size, shape and, with an image, intensities of objects.

    Args:
        cells: the objects of one image: `Instances`, a label array (H, W) of any integer type with 0 as background, or
            the path of a label image. For several images, a list of these.
        image: the image in which intensities are measured, in all channels: an `Image`, an array (H, W) or (H, W, C),
            or a path. None measures no intensities. For several images, a list of these.
        class_names: names of the classes 0..K-1, for the column "class"; None: the class ids.
        pixel_size: microns per pixel, one number or (y, x); None takes that of the image.

    Returns:
        A pandas table with one row per object and the ids of the objects as index "label"; for a list, a list of
        tables. Columns: class, score (NaN without scores), area_px, centroid_y_px, centroid_x_px,
        bbox_{x0,y0,x1,y1}_px, equivalent_diameter_px, perimeter_px, major_axis_px, minor_axis_px, eccentricity,
        orientation_deg, solidity, circularity; with an image intensity_{mean,min,max,std}_CHANNEL; with a pixel size
        area_um2 and equivalent_diameter_um. Definitions: `cellwright.measurement.table`. Without objects, the table
        has all columns and no rows.

    Raises:
        InputError: image and objects differ in size or number, a class id without a name, or an array that is not a
            label array.
        UsageError: an unsupported type.

    Example:
        >>> import cellwright as cw, numpy as np
        >>> labels = np.zeros((20, 30), np.uint16)
        >>> labels[2:6, 3:8], labels[10:18, 15:25] = 4, 7
        >>> table = cw.measure(labels, image=labels * 10)
        >>> table.index.tolist(), table["area_px"].tolist(), table["intensity_mean_grey"].tolist()
        ([4, 7], [20, 80], [40.0, 70.0])
        >>> table.loc[7, ["centroid_y_px", "centroid_x_px"]].tolist()
        [14.0, 20.0]
    """
    from cellwright.measurement.table import measure_instances

    instances, single = as_instances_list(cells)
    images = [None] * len(instances) if image is None else as_images(image)[0]
    if len(images) != len(instances):
        raise InputError(
            "objects and images differ in number",
            got=count(len(images), "image"),
            expected=f"{count(len(instances), 'image')}, one for each entry of `cells`",
        )
    size = as_pixel_size(pixel_size)
    pairs = zip(instances, images, strict=True)
    tables = [measure_instances(*pair, class_names=class_names, pixel_size_um=size) for pair in pairs]
    return tables[0] if single else tables
