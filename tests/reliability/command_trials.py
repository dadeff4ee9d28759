"""Runs commands that are killed; runs in children of `warm_process`."""

from __future__ import annotations

import os
import sys

import workshop

import killed


def prepare(root: str) -> None:
    """Make the workshop, which becomes the working directory. From then on charts are blank, which saves most time."""
    from matplotlib.figure import Figure

    workshop.make(root)
    os.chdir(root)
    Figure.draw = lambda figure, renderer: None


def run_command(emit, words: list[str], place: str, at: int | None = None) -> None:
    """Run ``cellwright words...`` in a folder, and kill it at its ``at``-th file operation; 0 counts them."""
    from cellwright.cli.app import main

    os.chdir(place)
    sys.argv = ["cellwright", *words]
    counted = None if at is None else killed.die_at(at)
    try:
        main(words)
    finally:
        if counted is not None:
            emit(counted())
