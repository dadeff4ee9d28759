"""Damages files and reads them; runs in children of `warm_process`."""

from __future__ import annotations

import logging
import os
import traceback
import zlib
from pathlib import Path

import damage_subjects
import numpy as np
from damage_subjects import Subject

from cellwright.core.errors import CellwrightError
from cellwright.testing.damage import damage_file

_SUBJECTS: dict[str, list[Subject]] = {}


def prepare(root: str) -> list[str]:
    """Make all subjects and read each once, so that everything is imported and compiled; returns their names.

    The workshop must be the working directory.
    """
    _SUBJECTS.update(damage_subjects.all_subjects(Path(root)))
    for subjects in _SUBJECTS.values():
        for subject in subjects:
            subject.read(subject.folder)
    return list(_SUBJECTS)


def read_damaged(emit, workshop: str, name: str, first: int, end: int) -> None:
    """Cases ``first`` to ``end`` of a subject; each depends on its number only.

    Emits ``[case, outcome, file, text]``: "started" before each, then "read", "refused" or "traceback", or
    "wrong" where something else than the undamaged content was read, and this must not be.
    """
    logging.disable(logging.CRITICAL)
    os.chdir(workshop)
    intact: dict[int, object] = {}
    for case in range(first, end):
        subjects = _SUBJECTS[name]
        k = case % len(subjects)
        subject = subjects[k]
        if subject.same and k not in intact:
            intact[k] = subject.read(subject.folder)
        rng = np.random.default_rng([20, zlib.crc32(name.encode()), case])
        file = subject.folder / subject.files[rng.integers(len(subject.files))]
        content = file.read_bytes()
        damage_file(file, rng)
        emit([case, "started", str(file), ""])
        text = ""
        try:
            result = subject.read(subject.folder)
            outcome = "wrong" if subject.same and result != intact[k] else "read"
        except CellwrightError as error:
            outcome, text = "refused", str(error)
        except BaseException:
            outcome, text = "traceback", traceback.format_exc()
        file.write_bytes(content)
        emit([case, outcome, str(file), text])
