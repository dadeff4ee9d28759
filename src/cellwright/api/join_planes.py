"""`join_planes`: the objects of consecutive planes of a stack as one object each."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np

from cellwright.api.inputs import ObjectsLike, as_instances_list
from cellwright.core.errors import InputError
from cellwright.core.masks import MaskSet
from cellwright.prediction.linking import check_iou, link_stack


def join_planes(planes: Iterable[ObjectsLike], *, stitch: float = 0.25) -> np.ndarray:
    """Number the objects of a stack by overlap from plane to plane, so that an object has one number in all of them.

    This is what ``predict --z all --stitch`` does, for objects that you have: predicted one by one, or corrected since.
    An object goes on in the object of the next plane that it overlaps most, if their overlap (IoU) is at least
    ``stitch``; of several that would go on in the same one, the one that overlaps most does. So objects never split or
    merge, and one that is missing in a plane gets a new number after it. The numbers are those of ``stitch3D`` of
    Cellpose, but for equal overlaps.

    Args:
        planes: the objects of each plane in order: label arrays (H, W) of one size, `Instances` or label files; an
            array (Z, H, W) is a list of planes.
        stitch: the smallest overlap (IoU) of two objects of consecutive planes that are one object, above 0, up to 1.

    Returns:
        Labels (Z, H, W) uint32: 0 is background, and objects are numbered from 1 without gaps, by their first plane.
        Without planes or objects there are no labels but 0.

    Raises:
        InputError: the planes differ in size, or are no label arrays.
        UsageError: ``stitch`` is out of range.

    Example:
        >>> import cellwright as cw, numpy as np
        >>> first, second = np.zeros((2, 6, 8), int)
        >>> first[1:4, 1:4], first[1:4, 5:8] = 1, 2
        >>> second[2:5, 1:4], second[5, 5:8] = 1, 2
        >>> cw.join_planes([first, second])[1, [2, 5], [1, 5]].tolist()
        [1, 3]
    """
    iou = check_iou(stitch)
    instances, _ = as_instances_list(list(planes))
    sizes = list(dict.fromkeys(of_plane.image_hw for of_plane in instances))
    if len(sizes) > 1:
        got = " and ".join(f"{height} x {width}" for height, width in sizes[:3])
        raise InputError("the planes of a stack have one size", got=got, expected="label arrays of one shape")
    masks = [MaskSet.from_label_map(of_plane.to_label_map())[0] for of_plane in instances]
    links = link_stack(lambda t, z: masks[z], 1, len(masks), iou)
    labels = np.zeros((len(masks), *(sizes[0] if sizes else (0, 0))), np.uint32)
    for z, of_plane in enumerate(masks):
        labels[z] = of_plane.to_label_map(links.ids[0, z])
    return labels
