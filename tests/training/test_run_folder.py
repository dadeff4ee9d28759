"""The metrics.json of a run."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from cellwright.core.errors import FormatError
from cellwright.training.run_folder import Best, RunFolder, read_best, write_metrics


def test_metrics_are_read_back_without_undefined_values(tmp_path: Path) -> None:
    run = RunFolder(tmp_path)
    best = Best(4, "aji", {"aji": 0.5, "pq": float("nan")})
    write_metrics(run, 6, {"aji": 0.25}, best)
    assert json.loads(run.metrics.read_text()) == {
        "schema_version": 1,
        "step": 6,
        "metrics": {"aji": 0.25},
        "best": {"step": 4, "chosen_by": "aji", "metrics": {"aji": 0.5, "pq": None}},
    }
    assert read_best(run) == Best(4, "aji", {"aji": 0.5})
    for content in ('{"best": {"metrics": {"aji": "high"}}}', '{"best": 3}', "[]"):
        run.metrics.write_text(content)
        with pytest.raises(FormatError, match="metrics.json"):
            read_best(run)
