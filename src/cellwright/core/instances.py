"""`Instances`: the objects of one image, checked on construction."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from cellwright.core import coco, morphology
from cellwright.core.class_ids import NO_CLASS
from cellwright.core.distance import Distance
from cellwright.core.errors import InputError
from cellwright.core.masks import Index, MaskSet, SoftMasks
from cellwright.core.masks import concat as concat_masks
from cellwright.core.notebook import card, drawing
from cellwright.core.public import public
from cellwright.core.text import count

if TYPE_CHECKING:
    import pandas as pd


@public
@dataclass(frozen=True, eq=False, repr=False)
class Instances:
    """The objects of one image: a prediction, or ground truth. There may be none (N = 0).

    image_hw: (H, W).
    ids: (N,) int64, positive and unique; an object keeps its id in every file that is written.
    boxes_xyxy: (N, 4) float32, absolute pixels, half open; the boxes of a detector, or the tight boxes of the masks.
    masks: `MaskSet` of N masks.
    class_ids: (N,) int64, 0..K-1; `NO_CLASS`, -1, for ignored regions that are not annotated for any class.
    scores: (N,) float32 in [0, 1], or None for ground truth.
    ignore: (N,) bool, regions that are not annotated, and COCO's crowds, which have a class. They are no objects and,
        whatever their class, neither train a model nor count in an evaluation; see `cellwright.core.ignored`.
    soft_masks: `SoftMasks` of N objects, or None. class_probs: (N, K) float32, or None.
    columns: named measurements, each (N,).

    The constructors below fill in what is not given. Indexing with an index array, a bool array or a slice returns the
    selected objects. Raises an `InputError` that names the field whose shape, dtype or values are wrong.

    >>> labels = np.zeros((6, 8), np.uint16)
    >>> labels[1:3, 1:4], labels[3:6, 5:8] = 7, 2
    >>> cells = Instances.from_label_map(labels, scores=[0.9, 0.4])
    >>> cells
    Instances(2 objects, 6 x 8 px, class 0, scores 0.4 to 0.9)
    >>> cells[cells.scores > 0.5].ids
    array([2])
    """

    image_hw: tuple[int, int]
    ids: np.ndarray
    boxes_xyxy: np.ndarray
    masks: MaskSet
    class_ids: np.ndarray
    scores: np.ndarray | None
    ignore: np.ndarray
    soft_masks: SoftMasks | None = None
    class_probs: np.ndarray | None = None
    columns: dict[str, np.ndarray] = field(default_factory=dict)

    def __post_init__(self) -> None:
        n = len(self.masks)
        if self.masks.image_hw != tuple(self.image_hw):
            raise InputError("the masks are for another image size", got=self.masks.image_hw, expected=self.image_hw)
        for name, shape, kinds in _FIELDS:
            value: np.ndarray | None = getattr(self, name)
            if value is None:
                continue
            if value.shape != (n, *shape) or value.dtype.kind not in kinds:
                raise InputError(
                    f"invalid field {name} of Instances",
                    got=f"shape {value.shape}, {value.dtype}",
                    expected=f"shape {(n, *shape)}, dtype kind {kinds}",
                )
        if n and (self.ids.min() <= 0 or np.unique(self.ids).size != n):
            raise InputError(
                "object ids must be unique and positive",
                got=f"{count(n, 'object')}, lowest id {self.ids.min()}",
                remedy="number the objects from 1",
            )
        lowest = np.where(self.ignore, NO_CLASS, 0)
        if (self.class_ids < lowest).any():
            got, remedy = int(self.class_ids[self.class_ids < lowest][0]), "number the classes from 0"
            raise InputError("class ids must not be negative, except -1 for ignored regions", got=got, remedy=remedy)
        if self.scores is not None and n and not ((self.scores >= 0) & (self.scores <= 1)).all():
            invalid = self.scores[~((self.scores >= 0) & (self.scores <= 1))][0]
            raise InputError("scores must be in [0, 1]", got=invalid, remedy="rescale the scores first")
        sized = [("soft_masks", self.soft_masks), ("class_probs", self.class_probs), *self.columns.items()]
        for name, value in sized:
            if value is not None and len(value) != n:
                raise InputError(f"invalid field {name} of Instances", got=count(len(value), "row"), expected=n)

    # --- constructors -------------------------------------------------------------------------------------------

    @staticmethod
    def from_masks(
        masks: MaskSet,
        *,
        class_ids: np.ndarray | Sequence[int] | None = None,
        scores: np.ndarray | Sequence[float] | None = None,
        ids: np.ndarray | Sequence[int] | None = None,
        ignore: np.ndarray | Sequence[bool] | None = None,
        boxes_xyxy: np.ndarray | None = None,
    ) -> Instances:
        """Objects from a `MaskSet` of N masks.

        Defaults: class 0, no scores (ground truth), ids 1..N, nothing ignored, and the tight boxes of the masks.
        Raises `InputError` if an argument does not have N rows.

        >>> masks = MaskSet.from_dense(np.ones((1, 4, 5), bool))
        >>> Instances.from_masks(masks, ids=[17])
        Instances(1 object, 4 x 5 px, class 0, ground truth)
        """
        n = len(masks)
        return Instances(
            masks.image_hw,
            np.arange(1, n + 1) if ids is None else np.asarray(ids, np.int64),
            np.asarray(masks.boxes if boxes_xyxy is None else boxes_xyxy, np.float32).reshape(n, 4),
            masks,
            np.zeros(n, np.int64) if class_ids is None else np.asarray(class_ids, np.int64),
            None if scores is None else np.asarray(scores, np.float32),
            np.zeros(n, bool) if ignore is None else np.asarray(ignore, bool),
        )

    @staticmethod
    def from_label_map(
        labels: np.ndarray,
        *,
        class_ids: np.ndarray | Sequence[int] | None = None,
        scores: np.ndarray | Sequence[float] | None = None,
    ) -> Instances:
        """Objects from a label array, the output of Cellpose, StarDist or ``skimage.measure.label``.

        labels: (H, W) of any integer dtype; 0 is background, every other value is one object and becomes its id. An
            array of zeros gives no objects.
        class_ids, scores: (N,) in ascending order of the labels. Defaults: class 0, and no scores (ground truth).

        Raises `InputError` for negative labels, for an array of another shape or dtype, and for bool arrays, which do
        not separate touching objects: label them with ``skimage.measure.label(mask)`` first.

        >>> cells = Instances.from_label_map(np.array([[0, 7, 7], [0, 0, 2]]))
        >>> cells.ids, cells.boxes_xyxy.tolist()
        (array([2, 7]), [[2.0, 1.0, 3.0, 2.0], [1.0, 0.0, 3.0, 1.0]])
        """
        labels = np.asarray(labels)
        if labels.dtype.kind == "b":
            raise InputError(
                "a bool mask is not a label array",
                got=f"shape {labels.shape}, {labels.dtype}",
                expected="an (H, W) array of integers, 0 for background",
                remedy="label the connected components with skimage.measure.label(mask)",
            )
        masks, ids = MaskSet.from_label_map(labels)
        return Instances.from_masks(masks, ids=ids, class_ids=class_ids, scores=scores)

    @staticmethod
    def from_polygons(
        polygons: Sequence[np.ndarray | Sequence[Sequence[float]]],
        image_hw: tuple[int, int],
        *,
        class_ids: np.ndarray | Sequence[int] | None = None,
        scores: np.ndarray | Sequence[float] | None = None,
    ) -> Instances:
        """Objects from one outline per object.

        polygons: N arrays (K, 2) of x, y in pixels, K at least 3; (0, 0) is the top left corner of the image, and the
            last vertex need not repeat the first. A pixel belongs to the object if its centre is inside. Parts outside
            the image are cut off, and an outline around no pixel centre gives an empty mask.
        image_hw: (H, W).
        class_ids, scores: (N,). Defaults: class 0, and no scores (ground truth). Ids are 1..N.

        For objects with holes or several parts use `MaskSet.from_polygons` and `from_masks`. Raises a `FormatError`
        that names the object whose outline is not a (K, 2) array of finite numbers.

        >>> Instances.from_polygons([[(1, 1), (5, 1), (5, 4), (1, 4)]], (6, 8)).masks.areas
        array([12])
        """
        masks = MaskSet.from_polygons([[[polygon]] for polygon in polygons], image_hw)
        return Instances.from_masks(masks, class_ids=class_ids, scores=scores)

    @staticmethod
    def from_coco(
        annotations: Sequence[Mapping[str, Any]],
        image_hw: tuple[int, int],
        *,
        categories: Mapping[int, int] | Sequence[int | Mapping[str, Any]] | None = None,
        scored: bool | None = None,
        source: object = None,
    ) -> Instances:
        """Objects from the COCO annotations or results of one image.

        annotations: dictionaries with ``category_id`` and ``segmentation``: compressed or uncompressed RLE, or polygons
            ``[[x, y, x, y, ...], ...]``, rasterised as pycocotools does. ``score``, ``bbox``, ``iscrowd`` (becomes
            ``ignore``), ``area`` and ``id`` are used if present.
        image_hw: (H, W).
        categories: the ``"categories"`` list of the file or a list of category ids, in the order of the class ids; or a
            dictionary from category id to class id. Objects of other categories are omitted, and crowds of them become
            regions of no class. By default, the categories of ``annotations`` in ascending order.
        scored: True for predictions (every annotation must have a score), False for ground truth (scores are not
            read). By default, objects are predictions if any annotation has a score.
        source: the file, for error messages.

        Raises a `FormatError` that names the annotation and the field.

        >>> square = {"id": 5, "category_id": 3, "segmentation": [[1, 1, 5, 1, 5, 4, 1, 4]], "score": 0.5}
        >>> cells = Instances.from_coco([square], (6, 8), categories=[{"id": 2, "name": "a"}, {"id": 3, "name": "b"}])
        >>> cells, cells.ids
        (Instances(1 object, 6 x 8 px, class 1, score 0.5), array([5]))
        """
        decoded = coco.decode(annotations, image_hw, categories=categories, scored=scored, source=source)
        return Instances(
            decoded.masks.image_hw,
            decoded.ids,
            decoded.boxes_xyxy,
            decoded.masks,
            decoded.class_ids,
            decoded.scores,
            decoded.ignore,
            columns=decoded.columns,
        )

    @staticmethod
    def empty(image_hw: tuple[int, int], *, scored: bool = False) -> Instances:
        """No objects: an empty prediction if ``scored``, else ground truth.

        >>> Instances.empty((6, 8), scored=True)
        Instances(0 objects, 6 x 8 px)
        """
        return Instances.from_masks(MaskSet.empty(image_hw), scores=np.zeros(0, np.float32) if scored else None)

    # --- conversions --------------------------------------------------------------------------------------------

    def to_label_map(self) -> np.ndarray:
        """Label array (H, W) uint32 in which every object has its id; 0 is background.

        Where objects overlap, the first in order is on top: sort with `by_score` to put the highest score on top.
        Raises `InputError` for an id above 4294967295, which does not fit uint32.

        >>> Instances.from_polygons([[(0, 0), (2, 0), (2, 1), (0, 1)]], (2, 3)).to_label_map()
        array([[1, 1, 0],
               [0, 0, 0]], dtype=uint32)
        """
        return self.masks.to_label_map(self.ids)

    def to_dataframe(self) -> pd.DataFrame:
        """A pandas table with one row per object and the ids as index, named "label".

        Columns: class_id (-1 for a region of no class), score (NaN for ground truth), ignore, the box x0, y0, x1, y1 in
        pixels, area_px, and then ``columns``. Without objects the table has no rows.

        >>> cells = Instances.from_label_map(np.array([[0, 7, 7], [0, 0, 2]]), scores=[0.5, 0.9])
        >>> cells.to_dataframe()  # doctest: +NORMALIZE_WHITESPACE
               class_id  score  ignore   x0   y0   x1   y1  area_px
        label
        2             0    0.5   False  2.0  1.0  3.0  2.0        1
        7             0    0.9   False  1.0  0.0  3.0  1.0        2
        """
        import pandas as pd

        x0, y0, x1, y1 = self.boxes_xyxy.T
        values = {
            "class_id": self.class_ids,
            "score": np.full(len(self), np.nan, np.float32) if self.scores is None else self.scores,
            "ignore": self.ignore,
            "x0": x0,
            "y0": y0,
            "x1": x1,
            "y1": y1,
            "area_px": self.masks.areas,
            **self.columns,
        }
        return pd.DataFrame(values, index=pd.Index(self.ids, name="label"))

    # --- changes of the masks -----------------------------------------------------------------------------------

    def expand(
        self, distance: float | str, *, pixel_size: float | Sequence[float] | None = None, where: object = None
    ) -> Instances:
        """The objects with the background within a distance: cells, approximated from their nuclei.

        Each pixel that is in no object goes to the nearest one, of equally near ones to that with the lowest id. So
        objects keep their ids and all their pixels, and never merge. Ignored regions stay as they are.

        distance: pixels, or text with a unit, such as "5um". pixel_size: microns per pixel, one number or (y, x), for
        microns. where: the image, for error messages.

        Columns are dropped, for they were measured before. Raises `UsageError` for an invalid distance, and
        `InputError` for microns without a pixel size.

        >>> nuclei = Instances.from_label_map(np.array([[0, 1, 0, 0, 0, 2, 0]]))
        >>> nuclei.expand(2).to_label_map().tolist(), nuclei.expand("0.5um", pixel_size=0.5).to_label_map().tolist()
        ([[1, 1, 1, 1, 2, 2, 2]], [[1, 1, 1, 0, 2, 2, 2]])
        """
        reach, spacing = Distance.of(distance, "distance").in_pixels(pixel_size, name="expand", where=where)
        growing = np.flatnonzero(~self.ignore)
        growing = growing[np.argsort(self.ids[growing], kind="stable")]
        order = np.concatenate([growing, np.flatnonzero(self.ignore)])
        parts = [morphology.expand(self.masks[growing], reach, spacing), self.masks[self.ignore]]
        return self._with_masks(concat_masks(parts)[np.argsort(order, kind="stable")])

    def smooth(self) -> Instances:
        """The objects with smooth outlines; round ones keep their size, and parts that are connected stay so.

        Pixels of other objects stay theirs. Columns are dropped.

        >>> square = Instances.from_polygons([[(4, 4), (16, 4), (16, 16), (4, 16)]], (20, 20))
        >>> square.masks.areas, square.smooth().masks.areas
        (array([144]), array([140]))
        """
        return self._with_masks(morphology.smooth(self.masks))

    def fill_holes(self) -> Instances:
        """The objects with the background that they enclose; pixels of other objects stay theirs. Columns are dropped.

        >>> ring = Instances.from_label_map(np.array([[1, 1, 1], [1, 0, 1], [1, 1, 1]]))
        >>> ring.fill_holes().masks.areas
        array([9])
        """
        return self._with_masks(morphology.fill_holes(self.masks))

    def remove_border(self) -> Instances:
        """The objects that do not touch the border of the image, where they may be cut off.

        >>> Instances.from_label_map(np.array([[0, 0, 0, 3], [0, 7, 0, 3], [0, 0, 0, 0]])).remove_border().ids
        array([7])
        """
        return self[~self.masks.touches_border]

    def _with_masks(self, masks: MaskSet) -> Instances:
        # Probabilities and measurements would no longer fit the masks.
        return replace(self, masks=masks, boxes_xyxy=masks.boxes.astype(np.float32), soft_masks=None, columns={})

    # --- access -------------------------------------------------------------------------------------------------

    def __len__(self) -> int:
        return len(self.masks)

    def __getitem__(self, index: Index) -> Instances:
        if not isinstance(index, slice):
            index = np.asarray(index, bool if np.asarray(index).dtype == bool else np.int64).reshape(-1)
        rest: dict[str, Any] = {name: getattr(self, name) for name in _PER_OBJECT}
        rest = {name: None if value is None else value[index] for name, value in rest.items()}
        columns = {name: values[index] for name, values in self.columns.items()}
        return Instances(self.image_hw, columns=columns, **rest)

    def by_score(self) -> Instances:
        """The objects sorted by score, highest first; ties keep their order. Ground truth is returned unchanged."""
        return self if self.scores is None else self[np.argsort(-self.scores, kind="stable")]

    def __repr__(self) -> str:
        parts = [count(len(self), "object"), f"{self.image_hw[0]} x {self.image_hw[1]} px"]
        if len(self):
            parts += [_describe_classes(self.class_ids)]
            parts += ["ground truth" if self.scores is None else _describe_scores(self.scores)]
        if self.ignore.any():
            parts += [f"{int(self.ignore.sum())} ignored"]
        if self.columns:
            names = ", ".join(list(self.columns)[:6]) + (", ..." if len(self.columns) > 6 else "")
            parts += [f"columns {names}"]
        return f"Instances({', '.join(parts)})"

    def _repr_html_(self) -> str:
        """A card with a picture of the objects, for notebooks."""
        rows = [("image", f"{self.image_hw[0]:,} x {self.image_hw[1]:,} px")]
        if len(self):
            scores = (
                "none (ground truth)" if self.scores is None else _describe_scores(self.scores).removeprefix("scores ")
            )
            rows += [("classes", _describe_classes(self.class_ids)), ("scores", scores)]
            rows += [("median area", f"{np.median(self.masks.areas):,.0f} px")]
        rows += [("ignored", f"{int(self.ignore.sum()):,}")] if self.ignore.any() else []
        rows += [("columns", ", ".join(list(self.columns)[:6]))] if self.columns else []
        return card(f"Instances: {count(len(self), 'object')}", rows, drawing(self))


_FIELDS = (
    ("ids", (), "i"),
    ("boxes_xyxy", (4,), "f"),
    ("class_ids", (), "i"),
    ("scores", (), "f"),
    ("ignore", (), "b"),
)
_PER_OBJECT = ("ids", "boxes_xyxy", "masks", "class_ids", "scores", "ignore", "soft_masks", "class_probs")


def _describe_classes(class_ids: np.ndarray) -> str:
    """``"class 0"``, ``"classes 0, 2"``, ``"12 classes"``; ``"no class"`` where there are only regions of none."""
    values = np.unique(class_ids[class_ids >= 0]).tolist()
    if not values:
        return "no class"
    if len(values) == 1:
        return f"class {values[0]}"
    return f"classes {', '.join(map(str, values))}" if len(values) <= 5 else count(len(values), "class")


def _describe_scores(scores: np.ndarray) -> str:
    low, high = f"{scores.min():.2g}", f"{scores.max():.2g}"
    return f"score {low}" if low == high else f"scores {low} to {high}"


def concat(parts: Sequence[Instances]) -> Instances:
    """All objects of several parts of one image, in order, with ids 1..N; columns and soft masks are dropped.

    Raises `InputError` if some parts are predictions and others are ground truth.
    """
    scores = [part.scores for part in parts if part.scores is not None]
    if scores and len(scores) != len(parts):
        raise InputError(
            "predictions and ground truth cannot be concatenated",
            got="some parts without scores",
            remedy="concatenate only predictions, or only ground truth",
        )
    return Instances.from_masks(
        concat_masks([part.masks for part in parts]),
        class_ids=np.concatenate([part.class_ids for part in parts]),
        scores=np.concatenate(scores) if scores else None,
        ignore=np.concatenate([part.ignore for part in parts]),
        boxes_xyxy=np.concatenate([part.boxes_xyxy for part in parts]),
    )
