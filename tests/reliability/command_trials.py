"""Runs commands that are killed; runs in children of `warm_process`."""

from __future__ import annotations

import os
import signal
import sys

import workshop

import killed


def prepare(root: str) -> None:
    """Make the workshop, which becomes the working directory.

    From then on charts are blank, and the demo uses a fast model and small images, which saves most of the time.
    """
    import torchvision.ops  # noqa: F401 - here once, or in each child that imports weights
    from skimage import data

    from blank_charts import blank_charts
    from cellwright.api import demo
    from cellwright.data import synthetic

    workshop.make(root)
    os.chdir(root)
    blank_charts()
    for name in ("cell", "coins"):
        small = getattr(data, name)()[100:150, 100:150]
        setattr(data, name, lambda small=small: small)
    draw_field = synthetic.draw_field
    synthetic.draw_field = lambda seed, image_hw, n: draw_field(seed, (48, 48), 3)
    demo.MODEL = "classical"


def run_command(emit, words: list[str], place: str, at: int | None = None, after_s: float | None = None) -> None:
    """Run ``cellwright words...`` in a folder.

    at: kill it at its ``at``-th file operation; 0 counts and emits them. after_s: kill it after this time.
    """
    from cellwright.cli.app import main

    os.chdir(place)
    sys.argv = ["cellwright", *words]
    counted = None if at is None else killed.die_at(at)
    if after_s is not None:
        signal.signal(signal.SIGALRM, signal.SIG_DFL)  # ends the process as SIGKILL does
        signal.setitimer(signal.ITIMER_REAL, after_s)
    try:
        main(words)
    finally:
        if counted is not None:
            emit(counted())
