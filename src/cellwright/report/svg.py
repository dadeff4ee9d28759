"""Charts as SVG, a few kilobytes each: lines, histograms, bars and intervals.

Series differ by colour (see `colours`) and by line pattern or hatching, so that they can be told apart in grey print.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import NamedTuple

import numpy as np
from markupsafe import Markup, escape

from cellwright.core.text import printable
from cellwright.report.colours import BLACK, BLUE, GREEN, ORANGE, PURPLE, RGB, SKY_BLUE, VERMILLION

WIDTH, HEIGHT = 420, 250
MAX_POINTS = 300  # of a line; of more, means are drawn
MAX_SERIES = 7
_COLOURS: tuple[RGB, ...] = (BLUE, VERMILLION, GREEN, PURPLE, ORANGE, SKY_BLUE, BLACK)
_FILLS: tuple[RGB, ...] = (BLUE, ORANGE, GREEN, SKY_BLUE, VERMILLION, PURPLE, BLACK)  # dark and light in turn
_DASHES = ("", "7 3", "2 2.5", "9 3 2 3", "12 3", "4 4", "1 3")
_GRID, _AXIS, _TEXT_PX = "#dde1e6", "#59626b", 7.6  # px per character, about
_ROW_PX, _LONGEST_NAME = 19, 25


class Line(NamedTuple):
    """Points of a line; values that are not finite are gaps."""

    x: np.ndarray
    y: np.ndarray


class Interval(NamedTuple):
    """A value with its confidence interval, NaN where there is none."""

    name: str
    value: float
    low: float
    high: float


def colour(k: int, colours: Sequence[RGB] = _COLOURS) -> str:
    """The colour of the k-th series."""
    return "#{:02x}{:02x}{:02x}".format(*colours[k % len(colours)])


def nice_ticks(low: float, high: float, most: int = 6) -> list[float]:
    """Round numbers from ``low`` to ``high``, at most about ``most``.

    >>> nice_ticks(0, 1), nice_ticks(0, 1234)
    ([0.0, 0.2, 0.4, 0.6, 0.8, 1.0], [0.0, 200.0, 400.0, 600.0, 800.0, 1000.0, 1200.0])
    """
    if not high > low:
        return [low]
    power = 10.0 ** math.floor(math.log10((high - low) / most))
    step = next(step * power for step in (1, 2, 5, 10) if (high - low) / (step * power) <= most + 0.5)
    first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
    return [float(f"{k * step:.12g}") for k in range(first, last + 1)]


@dataclass(frozen=True)
class _Frame:
    """The axes of a chart, and the places of values in it."""

    x_range: tuple[float, float]
    y_range: tuple[float, float]
    left: float
    top: float
    right: float = WIDTH - 12
    bottom: float = HEIGHT - 42
    log_y: bool = False

    def x(self, values: np.ndarray | float) -> np.ndarray:
        low, high = self.x_range
        return self.left + (np.asarray(values, np.float64) - low) / (high - low or 1) * (self.right - self.left)

    def y(self, values: np.ndarray | float) -> np.ndarray:
        low, high = self.y_range
        values = np.asarray(values, np.float64)
        if self.log_y:
            low, high, values = math.log10(low), math.log10(high), np.log10(np.maximum(values, low))
        return self.bottom - (values - low) / (high - low or 1) * (self.bottom - self.top)


def line_chart(
    lines: Mapping[str, Line],
    x_label: str,
    y_label: str,
    *,
    y_range: tuple[float, float] | None = None,
    log_y: bool = False,
    marked: bool = False,
    diagonal: bool = False,
) -> Markup:
    """Lines over x. Of long ones, the means of equal parts are drawn, over the range of their values.

    y_range: None is from 0 to the largest value. marked: draw the points. diagonal: draw where y equals x.
    """
    shown = {name: line for name, line in [*lines.items()][:MAX_SERIES] if np.isfinite(line.y).any()}
    if not shown:
        return _empty("no values")
    every_x, every_y = (np.concatenate([line[k][np.isfinite(line.y)] for line in shown.values()]) for k in (0, 1))
    if y_range is None:
        top = float(np.percentile(every_y, 99.5)) if len(every_y) > 3 * MAX_POINTS else float(every_y.max())
        positive = every_y[every_y > 0]
        low = float(positive.min()) * 0.8 if log_y and len(positive) else min(float(every_y.min()), 0.0)
        y_range = (low, top * 1.05 if top > low else low + 1)
    log_y = log_y and y_range[0] > 0
    x_range = (float(every_x.min()), float(every_x.max()))
    if x_range[0] == x_range[1]:
        x_range = (x_range[0] - 0.5, x_range[1] + 0.5)
    frame, parts = _axes(x_range, y_range, x_label, y_label, names=list(shown) if len(shown) > 1 else [], log_y=log_y)
    if diagonal:
        ends = np.array([max(x_range[0], y_range[0]), min(x_range[1], y_range[1])])
        parts.append(_path(frame.x(ends), frame.y(ends), "#888", "3 3", 1))
    for k, line in enumerate(shown.values()):
        parts += _line(frame, line, k, marked=marked)
    return _svg(parts, WIDTH, HEIGHT)


def _line(frame: _Frame, line: Line, k: int, *, marked: bool) -> list[Markup]:
    known = np.isfinite(line.y)
    x, y = line.x[known], line.y[known]
    parts = []
    if len(x) > MAX_POINTS:
        ends = np.linspace(0, len(x), MAX_POINTS + 1).astype(int)
        low, high = (np.array([f(y[a:b]) for a, b in pairwise(ends)]) for f in (np.min, np.max))
        x, y = (np.array([v[a:b].mean() for a, b in pairwise(ends)]) for v in (x, y))
        band_x, band_y = np.concatenate([x, x[::-1]]), np.concatenate([low, high[::-1]]).clip(*frame.y_range)
        points = _points(frame.x(band_x), frame.y(band_y))
        parts.append(_tag("polygon", {"points": points, "fill": colour(k), "opacity": "0.18"}))
    px, py = frame.x(x), frame.y(y.clip(*frame.y_range))
    parts.append(_path(px, py, colour(k), _DASHES[k], 1.8))
    if marked or len(x) == 1:
        parts += [_circle(a, b, 3, colour(k)) for a, b in zip(px.tolist(), py.tolist(), strict=True)]
    return parts


def histogram(
    groups: Mapping[str, np.ndarray], x_label: str, y_label: str = "objects", *, whole: bool = False
) -> Markup:
    """How often values occur, by group; a line marks the median. whole: the values are whole numbers.

    Values above the 99.5th percentile are counted in the last bin.
    """
    shown = {name: values[np.isfinite(values)] for name, values in [*groups.items()][:MAX_SERIES]}
    shown = {name: values for name, values in shown.items() if len(values)}
    if not shown:
        return _empty("no objects")
    every = np.concatenate([*shown.values()])
    edges = _edges(every, whole=whole)
    counts = {name: np.histogram(values.clip(edges[0], edges[-1]), edges)[0] for name, values in shown.items()}
    top = max(float(n.max()) for n in counts.values())
    names = list(shown) if len(shown) > 1 else []
    frame, parts = _axes((edges[0], edges[-1]), (0, top * 1.08), x_label, y_label, names=names)
    xs = frame.x(np.repeat(edges, 2))
    for k, (name, n) in enumerate(counts.items()):
        ys = frame.y(np.concatenate([[0], np.repeat(n, 2), [0]]))
        fill = {"fill": colour(k), "opacity": "0.3" if len(shown) == 1 else "0.1"}
        parts.append(_tag("polygon", {"points": _points(xs, ys), **fill}))
        parts.append(_path(xs, ys, colour(k), _DASHES[k], 1.6))
        middle = float(np.median(shown[name]).clip(edges[0], edges[-1]))
        parts.append(_path(frame.x(np.array([middle] * 2)), np.array([frame.top, frame.bottom]), colour(k), "4 3", 1.2))
    return _svg(parts, WIDTH, HEIGHT)


def _edges(values: np.ndarray, *, whole: bool) -> np.ndarray:
    """Edges of bins (B + 1,): Freedman and Diaconis, 8 to 40 bins of a round width."""
    low, high, quartiles = float(values.min()), float(np.percentile(values, 99.5)), np.percentile(values, [25, 75])
    if not high > low:
        half = 0.5 if low == 0 or whole else abs(low) * 0.05
        return np.array([low - half, low + half])
    width = 2 * float(quartiles[1] - quartiles[0]) / len(values) ** (1 / 3)
    n = min(max((high - low) / width if width > 0 else 20, 8), 40)
    step = (high - low) / n
    power = 10.0 ** math.floor(math.log10(step))
    step = next(s * power for s in (1, 2, 2.5, 5, 10) if s * power >= step * 0.999)
    step = max(round(step), 1) if whole else step
    first = math.floor(low / step + 1e-9) * step - (0.5 if whole else 0)
    return first + step * np.arange(math.ceil((high - first) / step + 1e-9) + 1)


def bars(
    names: Sequence[str], groups: Mapping[str, Sequence[float]], label: str, *, stacked: bool = False, text: str = ""
) -> Markup:
    """Horizontal bars, one row per name, with their values. stacked: one bar per row, with the groups beside each
    other; otherwise one bar per group. text: how values are written (a format)."""
    values = {name: np.nan_to_num(np.asarray(row, np.float64)) for name, row in [*groups.items()][:MAX_SERIES]}
    if not len(names) or not values:
        return _empty("nothing to show")
    table = np.stack([*values.values()])
    top = float((table.sum(0) if stacked else table).max()) or 1.0
    n_bars = 1 if stacked else len(values)
    row_px = max(_ROW_PX, 13 * n_bars + 5)
    shown = [short(name) for name in names]
    left = 14 + _TEXT_PX * max(map(len, shown))
    legend_px = _legend_height(list(values), WIDTH - left) if len(values) > 1 else 0
    height = legend_px + row_px * len(names) + 34
    scale = (WIDTH - left - 52) / top
    parts = _legend(list(values), left, filled=True) if len(values) > 1 else []
    for row, name in enumerate(shown):
        y = legend_px + 4 + row * row_px
        parts.append(_text(left - 7, y + row_px / 2, name, anchor="end"))
        start, bar = left, (row_px - 5) / n_bars
        for k in range(len(values)):
            size, place = table[k, row] * scale, y + (0 if stacked else k * bar) + 1
            rect = {"x": f"{start:.1f}", "y": f"{place:.1f}", "width": f"{size:.1f}", "height": f"{bar - 1:.1f}"}
            parts.append(_tag("rect", {**rect, "fill": colour(k, _FILLS), "stroke": "#fff"}))
            if not stacked:
                parts.append(_text(start + size + 5, place + bar / 2, _value(table[k, row], text)))
            else:
                start += size
        if stacked:
            parts.append(_text(start + 5, y + row_px / 2 - 1, _value(table[:, row].sum(), text)))
    base = legend_px + 4 + row_px * len(names)
    parts.append(_path(np.array([left, left]), np.array([legend_px + 2, base]), _AXIS, "", 1))
    parts.append(_text((left + WIDTH) / 2, base + 16, label, anchor="middle"))
    return _svg(parts, WIDTH, height)


def intervals(rows: Sequence[Interval], *, digits: int = 3) -> Markup:
    """Values from 0 to 1 with their confidence intervals."""
    if not rows:
        return _empty("no values")
    left, right, row_px = 14 + _TEXT_PX * max(len(short(row.name)) for row in rows), WIDTH - 46, 24
    base = row_px * len(rows) + 6
    frame = _Frame((0, 1), (0, 1), left, 6, right, base)
    parts = []
    for tick in nice_ticks(0, 1):
        x = frame.x(np.array([tick] * 2))
        parts += [_path(x, np.array([4, base]), _GRID, "", 1), _text(float(x[0]), base + 13, f"{tick:g}", "middle")]
    for k, row in enumerate(rows):
        y = 6 + row_px * (k + 0.5)
        parts.append(_text(left - 7, y, short(row.name), anchor="end"))
        if math.isfinite(row.low) and math.isfinite(row.high):
            ends = frame.x(np.array([row.low, row.high]))
            parts.append(_path(ends, np.array([y, y]), colour(0), "", 2))
            parts += [_path(np.array([end] * 2), np.array([y - 5, y + 5]), colour(0), "", 2) for end in ends]
        if math.isfinite(row.value):
            parts.append(_circle(float(frame.x(row.value)), y, 4, colour(0)))
        text = f"{row.value:.{digits}f}" if math.isfinite(row.value) else "-"
        parts.append(_text(right + 8, y, text))
    return _svg(parts, WIDTH, base + 24)


# --- the parts of charts


def _axes(
    x_range: tuple[float, float],
    y_range: tuple[float, float],
    x_label: str,
    y_label: str,
    *,
    names: Sequence[str],
    log_y: bool = False,
) -> tuple[_Frame, list[Markup]]:
    """A frame with ticks, labels and a legend of several series."""
    if log_y:
        low, high = math.floor(math.log10(y_range[0])), math.ceil(math.log10(y_range[1]))
        y_ticks = [10.0**k for k in range(low, high + 1) if y_range[0] <= 10.0**k <= y_range[1]] or [*y_range]
    else:
        y_ticks = nice_ticks(*y_range, 5)
    y_texts = [_tick(tick) for tick in y_ticks]
    left = 30 + _TEXT_PX * max(map(len, y_texts))
    top = 8 + (_legend_height(names, WIDTH - left) if names else 0)
    frame = _Frame(x_range, y_range, left, top, log_y=log_y)
    parts = _legend(names, left) if names else []
    for tick, text in zip(y_ticks, y_texts, strict=True):
        y = float(frame.y(tick))
        parts.append(_path(np.array([left, frame.right]), np.array([y, y]), _GRID, "", 1))
        parts.append(_text(left - 6, y, text, anchor="end"))
    for tick in nice_ticks(*x_range, 6):
        x = float(frame.x(tick))
        parts.append(_path(np.array([x, x]), np.array([frame.bottom, frame.bottom + 4]), _AXIS, "", 1))
        text = _tick(tick)
        centre = min(x, WIDTH - _TEXT_PX * len(text) / 2)  # the last one is not cut off at the edge
        parts.append(_text(centre, frame.bottom + 14, text, anchor="middle"))
    corner_x, corner_y = np.array([left, left, frame.right]), np.array([top, frame.bottom, frame.bottom])
    parts.append(_path(corner_x, corner_y, _AXIS, "", 1))
    parts.append(_text((left + frame.right) / 2, HEIGHT - 9, x_label, anchor="middle"))
    middle = (top + frame.bottom) / 2
    parts.append(_text(11, middle, y_label, anchor="middle", turned=True))
    return frame, parts


def _legend(names: Sequence[str], left: float, *, filled: bool = False) -> list[Markup]:
    parts = []
    for k, (name, x, row) in enumerate(_legend_places(names, WIDTH - left)):
        at, y = left + x, 11 + 17 * row
        if filled:
            parts.append(
                _tag("rect", {"x": f"{at:.1f}", "y": y - 5, "width": 14, "height": 10, "fill": colour(k, _FILLS)})
            )
        else:
            parts.append(_path(np.array([at, at + 24]), np.array([y, y]), colour(k), _DASHES[k], 2.2))
        parts.append(_text(at + (19 if filled else 29), y, name))
    return parts


def _legend_places(names: Sequence[str], width: float) -> list[tuple[str, float, int]]:
    places, x, row = [], 0.0, 0
    for name in map(short, names):
        used = 42 + _TEXT_PX * len(name)
        if x and x + used > width:
            x, row = 0.0, row + 1
        places.append((name, x, row))
        x += used
    return places


def _legend_height(names: Sequence[str], width: float) -> int:
    return 17 * (1 + max(row for _, _, row in _legend_places(names, width))) + 4


def short(name: str) -> str:
    """A name that fits, with its beginning and its end.

    >>> short("field_1"), short("0123456789abcdefghijklmnopqrstuvwxyz")
    ('field_1', '012345678…lmnopqrstuvwxyz')
    """
    name = printable(str(name))
    return name if len(name) <= _LONGEST_NAME else f"{name[:9]}…{name[-(_LONGEST_NAME - 10) :]}"


def _tick(value: float) -> str:
    if value and not 1e-3 <= abs(value) < 1e6:
        return f"{value:.0e}".replace("e-0", "e-").replace("e+0", "e")
    return f"{value:,.6g}" if value != round(value) else f"{round(value):,}"


def _value(value: float, text: str) -> str:
    return f"{value:{text}}" if text else f"{value:,.0f}"


def _points(xs: np.ndarray, ys: np.ndarray) -> str:
    return " ".join(f"{x:.1f},{y:.1f}" for x, y in zip(xs.tolist(), ys.tolist(), strict=True))


def _path(xs: np.ndarray, ys: np.ndarray, stroke: str, dash: str, width: float) -> Markup:
    style = {"fill": "none", "stroke": stroke, "stroke-width": f"{width:g}", "stroke-linejoin": "round"}
    return _tag("polyline", {"points": _points(xs, ys), **style, **({"stroke-dasharray": dash} if dash else {})})


def _circle(x: float, y: float, radius: float, fill: str) -> Markup:
    return _tag("circle", {"cx": f"{x:.1f}", "cy": f"{y:.1f}", "r": f"{radius:g}", "fill": fill, "stroke": "#fff"})


def _text(x: float, y: float, text: str, anchor: str = "start", *, turned: bool = False) -> Markup:
    place = {"x": f"{x:.1f}", "y": f"{y:.1f}", "text-anchor": anchor, "dominant-baseline": "central"}
    if turned:
        place["transform"] = f"rotate(-90 {x:.1f} {y:.1f})"
    return _tag("text", place, printable(text))


def _empty(text: str) -> Markup:
    return _svg([_text(WIDTH / 2, 30, text, anchor="middle")], WIDTH, 60)


def _svg(parts: Sequence[Markup], width: float, height: float) -> Markup:
    return _tag("svg", {"viewBox": f"0 0 {width:g} {height:g}", "role": "img"}, Markup().join(parts))


def _tag(name: str, attributes: Mapping[str, object], content: str | Markup = "") -> Markup:
    """An element; content and values are escaped."""
    written = "".join(f' {key}="{escape(value)}"' for key, value in attributes.items())
    return Markup(f"<{name}{written}>{escape(content)}</{name}>")
