"""Views: the sizes and orientations in which a network looks at one image, and the exact way back from each.

    --views  [SIZES:]ORIENTATIONS  or  SIZES
    SIZES         comma-separated: factors up to 8 on the size that the model would see, short sides from 16 px on, and
                  ``maxN`` for the longest long side, px
    ORIENTATIONS  mirror (as it is, left and right swapped) | flips (those, upside down, both) | turns (all eight)

So ``flips`` are 4 views, ``0.8,1,1.25:mirror`` are 6 and ``400,500,600,700,800,900,max1600:mirror`` are 12.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from cellwright.config.input import InputConfig
from cellwright.core.errors import UsageError, did_you_mean

# Whether it is mirrored, and quarter turns afterwards; upside down is mirrored and turned by half.
ORIENTATIONS: dict[str, tuple[tuple[bool, int], ...]] = {
    "mirror": ((False, 0), (True, 0)),
    "flips": ((False, 0), (True, 0), (True, 2), (False, 2)),
    "turns": tuple((flip, turns) for turns in range(4) for flip in (False, True)),
}
_LARGEST_FACTOR, _SMALLEST_SIDE, _LARGEST_SIDE = 8, 16, 1 << 15


@dataclass(frozen=True, kw_only=True)
class View:
    """One size and orientation. The plain one, ``View()``, is what the model sees without views.

    short_side: the image's short side becomes this, px; None: ``scale`` times the size that the model would see.
    max_side: the long side never exceeds this, px; None: as far beyond the short side as the recipe allows it.
    horizontal_flip: left and right swapped. quarter_turns: 0 to 3 counter-clockwise, after the flip, as `np.rot90`.

    Raises `UsageError` for what is out of range.
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
                raise UsageError("a view is out of range", where=name, got=value, expected=expected)

    @property
    def size(self) -> tuple[int | None, int | None, float]:
        """What tells views of different sizes apart."""
        return self.short_side, self.max_side, self.scale

    def input_config(self, config: InputConfig) -> InputConfig:
        """How the model's images are resized for this view.

        Raises `UsageError` for a short side where ``input.diameter_px`` decides the size.
        """
        short, long = config.short_side, config.max_side
        if self.short_side is None:
            if short is None:
                return config.model_copy(update={"scale": config.scale * self.scale})
            sides = {"short_side": _times(short, self.scale), "max_side": _times(long, self.scale)}
            return config.model_copy(update=sides)
        if config.diameter_px is not None:
            raise UsageError(
                "this model sees objects at one size, so a view has no short side",
                where="views",
                got=f"{self.short_side} px",
                expected="factors",
                remedy="give factors such as 0.8,1,1.25",
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
        """The inverse of `turn`, for images, class maps and mask crops."""
        turned = np.rot90(array, -self.quarter_turns, (-2, -1))
        return np.ascontiguousarray(turned[..., ::-1] if self.horizontal_flip else turned)

    def turn_maps(self, maps: np.ndarray, channels: Sequence[str]) -> np.ndarray:
        """Maps (D, H, W) of a turned image, of the maps of the image: channels flow_y and flow_x turn as vectors."""
        turned = self.turn(maps)
        if "flow_y" in channels:
            y, x = channels.index("flow_y"), channels.index("flow_x")
            flow = turned[y].copy(), -turned[x] if self.horizontal_flip else turned[x].copy()
            turned[y], turned[x] = _rotated(*flow, self.quarter_turns)
        return turned

    def turn_maps_back(self, maps: np.ndarray, channels: Sequence[str]) -> np.ndarray:
        """The inverse of `turn_maps`."""
        turned = self.turn_back(maps)
        if "flow_y" in channels:
            y, x = channels.index("flow_y"), channels.index("flow_x")
            flow_y, flow_x = _rotated(turned[y].copy(), turned[x].copy(), -self.quarter_turns)
            turned[y], turned[x] = flow_y, -flow_x if self.horizontal_flip else flow_x
        return turned

    def turn_boxes(self, boxes: np.ndarray, image_hw: tuple[int, int]) -> np.ndarray:
        """Boxes (N, 4) ``x0 y0 x1 y1`` of an image of ``image_hw``, where they lie after it is turned."""
        height, width = image_hw
        turned = _mirrored(boxes, width) if self.horizontal_flip else boxes.copy()
        for _ in range(self.quarter_turns):
            turned = np.stack([turned[:, 1], width - turned[:, 2], turned[:, 3], width - turned[:, 0]], axis=1)
            height, width = width, height
        return turned

    def turn_boxes_back(self, boxes: np.ndarray, image_hw: tuple[int, int]) -> np.ndarray:
        """The inverse of `turn_boxes`; ``image_hw`` is that of the image before it is turned."""
        height, width = self.turned_hw(image_hw)
        turned = boxes.copy()
        for _ in range(self.quarter_turns):
            turned = np.stack([height - turned[:, 3], turned[:, 0], height - turned[:, 1], turned[:, 2]], axis=1)
            height, width = width, height
        return _mirrored(turned, width) if self.horizontal_flip else turned


PLAIN = (View(),)


def parse_views(text: str) -> tuple[View, ...]:
    """The views that a text such as ``400,500:flips`` names, those of one size together; see the module's text.

    Raises `UsageError` that says which part is wrong.
    """
    sizes, colon, orientations = (part.strip() for part in text.partition(":"))
    if not colon and not sizes[:1].isdigit() and not sizes.startswith("max"):
        sizes, orientations = "", sizes
    views = _sizes(sizes) if sizes else [View()]
    if colon or not sizes:
        if orientations not in ORIENTATIONS:
            remedy = did_you_mean(orientations, ORIENTATIONS) if orientations else None
            raise _no_views(text, orientations, remedy)
        views = [
            replace(view, horizontal_flip=flip, quarter_turns=turns)
            for view in views
            for flip, turns in ORIENTATIONS[orientations]
        ]
    return tuple(dict.fromkeys(views))


def as_views(views: str | Sequence[View]) -> tuple[View, ...]:
    """Views as they are, or those that a text names; `UsageError` where there is none."""
    if isinstance(views, str):
        return parse_views(views)
    if not views:
        raise UsageError("there are no views", where="views", expected="one at least; View() is the image as it is")
    return tuple(dict.fromkeys(views))


def _sizes(text: str) -> list[View]:
    words = [word.strip() for word in text.split(",")]
    caps = [word for word in words if word.startswith("max")]
    values = [_number(text, word) for word in words if not word.startswith("max")]
    if len(caps) > 1 or (caps and (not values or min(values) < _SMALLEST_SIDE)):
        raise _no_views(text, ",".join(caps), "a cap belongs to short sides: 400,600,max1600")
    cap = int(_number(text, caps[0].removeprefix("max"))) if caps else None
    views = []
    for value in values:
        if value <= _LARGEST_FACTOR:
            views.append(View(scale=value))
        elif value != int(value) or not _SMALLEST_SIDE <= value <= _LARGEST_SIDE:
            raise _no_views(text, f"{value:g}", "factors go up to 8, short sides are whole pixels from 16 on")
        else:
            views.append(View(short_side=int(value), max_side=cap))
    return views


def _number(text: str, word: str) -> float:
    try:
        value = float(word)
    except ValueError:
        raise _no_views(text, word, None) from None
    if not 1 / _LARGEST_FACTOR <= value <= _LARGEST_SIDE:
        raise _no_views(text, word, "factors go from 1/8 to 8, short sides from 16 px on")
    return value


def _no_views(text: str, part: str, remedy: str | None) -> UsageError:
    return UsageError(
        "these are no views",
        where="views",
        got=repr(text) if part in ("", text) else f"{part!r} in {text!r}",
        expected="[SIZES:]mirror|flips|turns or SIZES, such as flips, 0.8,1,1.25:mirror or 400,600,800,max1600:flips",
        remedy=remedy,
    )


def _times(side: int | None, factor: float) -> int | None:
    return None if side is None else int(side * factor + 0.5)


def _mirrored(boxes: np.ndarray, width: int) -> np.ndarray:
    return np.stack([width - boxes[:, 2], boxes[:, 1], width - boxes[:, 0], boxes[:, 3]], axis=1)


def _rotated(flow_y: np.ndarray, flow_x: np.ndarray, quarter_turns: int) -> tuple[np.ndarray, np.ndarray]:
    """Vectors turned counter-clockwise as one sees them: what pointed right then points up, y being negative there."""
    for _ in range(quarter_turns % 4):
        flow_y, flow_x = -flow_x, flow_y
    return flow_y, flow_x
