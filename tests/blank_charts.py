"""Charts that stay blank, which saves seconds per training; tests of charts draw them, see `real_charts`."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np


def blank_charts() -> dict[str, Callable[..., object]]:
    """Have charts stay blank in this process; returns what `monkeypatch` sets to draw them."""
    from matplotlib.figure import Figure

    from cellwright.report import curves, plate

    drawn = {
        "matplotlib.figure.Figure.draw": Figure.draw,
        "cellwright.report.curves._plot": curves._plot,
        "cellwright.report.plate.draw_counts": plate.draw_counts,
    }
    Figure.draw = lambda figure, renderer: None
    curves._plot = _write_blank
    plate.draw_counts = lambda names, counts, class_names: np.full((8, 12, 3), 255, np.uint8)
    return drawn


def _write_blank(path: Path, *_: object) -> None:
    import cv2

    from cellwright.core.files import atomic_path

    with atomic_path(path) as temporary:
        Path(temporary).write_bytes(cv2.imencode(".png", np.full((8, 12), 255, np.uint8))[1].tobytes())
