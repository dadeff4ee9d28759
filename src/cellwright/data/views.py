"""Views for test-time augmentation (TTA): sizes and orientations of an image, and the exact inverse of each.

Views are written as text, ``[SIZES:]ORIENTATIONS`` or ``SIZES``:

    SIZES         comma-separated: factors up to 8 on the size of the model's input, short sides from 16 px, and
                  ``maxN`` for the largest long side, px
    ORIENTATIONS  mirror (original, left-right) | flips (these, up-down, both) | turns (all eight)

So ``flips`` is 4 views, ``0.8,1,1.25:mirror`` is 6 and ``400,500,600,700,800,900,max1600:mirror`` is 12.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace

import numpy as np

from cellwright.config.input import InputConfig
from cellwright.core.errors import UsageError, did_you_mean
from cellwright.core.public import public

# (horizontal flip, quarter turns afterwards); an up-down flip is a horizontal flip and a half turn.
ORIENTATIONS: dict[str, tuple[tuple[bool, int], ...]] = {
    "mirror": ((False, 0), (True, 0)),
    "flips": ((False, 0), (True, 0), (True, 2), (False, 2)),
    "turns": tuple((flip, turns) for turns in range(4) for flip in (False, True)),
}
_LARGEST_FACTOR, _SMALLEST_SIDE, _LARGEST_SIDE = 8, 16, 1 << 15


@public
@dataclass(frozen=True, kw_only=True, repr=False)
class View:
    """A size and an orientation of an image, for test-time augmentation. ``View()`` is the image without augmentation.

    short_side: length of the image's short side, px; None: ``scale`` times the size of the model's input.
    max_side: largest long side, px; None: in the same ratio to the short side as in the model's recipe.
    scale: factor on the size of the model's input, 1/8 to 8.
    horizontal_flip: swap left and right.
    quarter_turns: 0 to 3, counter-clockwise, after the flip, as `np.rot90`.

    Raises `UsageError` for a value out of range.

    >>> import cellwright as cw
    >>> cw.View(scale=0.8, horizontal_flip=True)
    View(scale=0.8, horizontal_flip=True)
    >>> cw.View(quarter_turns=1).turn(np.array([[1, 2], [3, 4]])).tolist()
    [[2, 4], [1, 3]]
    """

    short_side: int | None = None
    max_side: int | None = None
    scale: float = 1.0
    horizontal_flip: bool = False
    quarter_turns: int = 0

    def __post_init__(self) -> None:
        short, long = self.short_side, self.max_side
        limits = (
            ("short_side", short, short is None or _SMALLEST_SIDE <= short <= _LARGEST_SIDE, "16 px or more"),
            ("max_side", long, long is None or (short is not None and long >= short), "no less than a short_side"),
            ("scale", self.scale, 1 / _LARGEST_FACTOR <= self.scale <= _LARGEST_FACTOR, "1/8 to 8"),
            ("scale", self.scale, short is None or self.scale == 1, "a short_side or a scale, not both"),
            ("quarter_turns", self.quarter_turns, self.quarter_turns in range(4), "0 to 3"),
        )
        for name, value, fits, expected in limits:
            if not fits:
                raise UsageError(f"`{name}` of a view is out of range", got=value, expected=expected)

    def __repr__(self) -> str:
        changed = [field for field in fields(self) if getattr(self, field.name) != field.default]
        return f"View({', '.join(f'{field.name}={getattr(self, field.name)!r}' for field in changed)})"

    @property
    def size(self) -> tuple[int | None, int | None, float]:
        """Identifies the size: equal for views that differ in orientation only."""
        return self.short_side, self.max_side, self.scale

    def input_config(self, config: InputConfig) -> InputConfig:
        """The model's input configuration with the size of this view.

        Raises `UsageError` for a short side if ``input.diameter_px`` determines the size.
        """
        short, long = config.short_side, config.max_side
        if self.short_side is None:
            if short is None:
                return config.model_copy(update={"scale": config.scale * self.scale})
            sides = {"short_side": _times(short, self.scale), "max_side": _times(long, self.scale)}
            return config.model_copy(update=sides)
        if config.diameter_px is not None:
            raise UsageError(
                "a view of this model cannot have a short side, since the diameter of the objects determines the size",
                got=f"{self.short_side} px in `views`",
                expected="factors",
                remedy="use factors such as 0.8,1,1.25",
            )
        cap = self.max_side
        if cap is None and short is not None:
            cap = _times(long, self.short_side / short)
        return config.model_copy(update={"short_side": self.short_side, "max_side": cap})

    def turned_hw(self, image_hw: tuple[int, int]) -> tuple[int, int]:
        """(h, w) of an image of ``image_hw`` in this orientation."""
        return image_hw if self.quarter_turns % 2 == 0 else (image_hw[1], image_hw[0])

    def turn(self, array: np.ndarray) -> np.ndarray:
        """An array (..., H, W) in this orientation, contiguous."""
        flipped = array[..., ::-1] if self.horizontal_flip else array
        return np.ascontiguousarray(np.rot90(flipped, self.quarter_turns, (-2, -1)))

    def turn_back(self, array: np.ndarray) -> np.ndarray:
        """The inverse of `turn`."""
        turned = np.rot90(array, -self.quarter_turns, (-2, -1))
        return np.ascontiguousarray(turned[..., ::-1] if self.horizontal_flip else turned)

    def turn_maps(self, maps: np.ndarray, channels: Sequence[str]) -> np.ndarray:
        """As `turn`, for a network's maps (D, H, W); flow_y and flow_x turn as a vector, ray_0 to ray_N change places.

        Rays are lengths at N equal angles, from right, clockwise on the screen; N is a multiple of 4.
        """
        turned = self.turn(maps)
        if "flow_y" in channels:
            y, x = channels.index("flow_y"), channels.index("flow_x")
            flow = turned[y].copy(), -turned[x] if self.horizontal_flip else turned[x].copy()
            turned[y], turned[x] = _rotated(*flow, self.quarter_turns)
        if "ray_0" in channels:
            own, rays = self._rays(channels)
            turned[rays] = turned[own]
        return turned

    def turn_maps_back(self, maps: np.ndarray, channels: Sequence[str]) -> np.ndarray:
        """The inverse of `turn_maps`."""
        turned = self.turn_back(maps)
        if "flow_y" in channels:
            y, x = channels.index("flow_y"), channels.index("flow_x")
            flow_y, flow_x = _rotated(turned[y].copy(), turned[x].copy(), -self.quarter_turns)
            turned[y], turned[x] = flow_y, -flow_x if self.horizontal_flip else flow_x
        if "ray_0" in channels:
            own, rays = self._rays(channels)
            turned[own] = turned[rays]
        return turned

    def _rays(self, channels: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
        """Indices (N,) of the channels of all rays, and of the rays into which each turns."""
        own = np.array([channels.index(f"ray_{k}") for k in range(sum(name.startswith("ray_") for name in channels))])
        n, k = len(own), np.arange(len(own))
        turned = n // 2 - k if self.horizontal_flip else k
        return own, own[(turned - self.quarter_turns * n // 4) % n]

    def turn_boxes(self, boxes: np.ndarray, image_hw: tuple[int, int]) -> np.ndarray:
        """Boxes (N, 4) ``x0 y0 x1 y1`` of an image of ``image_hw``, in the turned image."""
        height, width = image_hw
        turned = _mirrored(boxes, width) if self.horizontal_flip else boxes.copy()
        for _ in range(self.quarter_turns):
            turned = np.stack([turned[:, 1], width - turned[:, 2], turned[:, 3], width - turned[:, 0]], axis=1)
            height, width = width, height
        return turned

    def turn_boxes_back(self, boxes: np.ndarray, image_hw: tuple[int, int]) -> np.ndarray:
        """The inverse of `turn_boxes`; ``image_hw`` is the size of the image before it is turned."""
        height, width = self.turned_hw(image_hw)
        turned = boxes.copy()
        for _ in range(self.quarter_turns):
            turned = np.stack([height - turned[:, 3], turned[:, 0], height - turned[:, 1], turned[:, 2]], axis=1)
            height, width = width, height
        return _mirrored(turned, width) if self.horizontal_flip else turned


PLAIN = (View(),)


def parse_views(text: str) -> tuple[View, ...]:
    """Views from text such as ``400,500:flips`` (see the module's docstring); views of one size follow each other.

    Raises `UsageError` naming the invalid part.

    >>> parse_views("0.8,1:mirror")[1]
    View(scale=0.8, horizontal_flip=True)
    """
    sizes, colon, orientations = (part.strip() for part in text.partition(":"))
    if not colon and not sizes[:1].isdigit() and not sizes.startswith("max"):
        sizes, orientations = "", sizes
    views = _sizes(sizes) if sizes else [View()]
    if colon or not sizes:
        if orientations not in ORIENTATIONS:
            remedy = did_you_mean(orientations, ORIENTATIONS) if orientations else None
            raise _invalid(text, orientations, remedy)
        views = [
            replace(view, horizontal_flip=flip, quarter_turns=turns)
            for view in views
            for flip, turns in ORIENTATIONS[orientations]
        ]
    return tuple(dict.fromkeys(views))


def as_views(views: str | Sequence[View]) -> tuple[View, ...]:
    """Views from text or from a sequence, without repetitions; `UsageError` if there is none."""
    if isinstance(views, str):
        return parse_views(views)
    if not views:
        raise UsageError("`views` is empty", expected="at least one; View() is the image without augmentation")
    return tuple(dict.fromkeys(views))


def _sizes(text: str) -> list[View]:
    words = [word.strip() for word in text.split(",")]
    caps = [word for word in words if word.startswith("max")]
    values = [_number(text, word) for word in words if not word.startswith("max")]
    if len(caps) > 1 or (caps and (not values or min(values) < _SMALLEST_SIDE)):
        raise _invalid(text, ",".join(caps), "maxN applies to short sides: 400,600,max1600")
    cap = int(_number(text, caps[0].removeprefix("max"))) if caps else None
    views = []
    for value in values:
        if value <= _LARGEST_FACTOR:
            views.append(View(scale=value))
        elif value != int(value) or not _SMALLEST_SIDE <= value <= _LARGEST_SIDE:
            raise _invalid(text, f"{value:g}", "factors are at most 8, short sides whole numbers of at least 16 px")
        else:
            views.append(View(short_side=int(value), max_side=cap))
    return views


def _number(text: str, word: str) -> float:
    try:
        value = float(word)
    except ValueError:
        raise _invalid(text, word, None) from None
    if not 1 / _LARGEST_FACTOR <= value <= _LARGEST_SIDE:
        raise _invalid(text, word, "factors are 1/8 to 8, short sides at least 16 px")
    return value


def _invalid(text: str, part: str, remedy: str | None) -> UsageError:
    return UsageError(
        "invalid `views`",
        got=repr(text) if part in ("", text) else f"{part!r} in {text!r}",
        expected="[SIZES:]mirror|flips|turns or SIZES, such as flips, 0.8,1,1.25:mirror or 400,600,800,max1600:flips",
        remedy=remedy,
    )


def _times(side: int | None, factor: float) -> int | None:
    return None if side is None else int(side * factor + 0.5)


def _mirrored(boxes: np.ndarray, width: int) -> np.ndarray:
    return np.stack([width - boxes[:, 2], boxes[:, 1], width - boxes[:, 0], boxes[:, 3]], axis=1)


def _rotated(flow_y: np.ndarray, flow_x: np.ndarray, quarter_turns: int) -> tuple[np.ndarray, np.ndarray]:
    """Vectors rotated counter-clockwise on the screen: right becomes up, where y is negative."""
    for _ in range(quarter_turns % 4):
        flow_y, flow_x = -flow_x, flow_y
    return flow_y, flow_x
