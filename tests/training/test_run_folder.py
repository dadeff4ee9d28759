"""Starting, resuming and refusing a run; its metrics.json."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from cellwright.core.dataset import Dataset, Loaded, Sample
from cellwright.core.errors import FormatError, OutputError
from cellwright.core.instances import Instances
from cellwright.data.identity import Identity
from cellwright.training.run_folder import Best, RunFolder, open_run, read_best, recorded_identity, write_metrics

ENVIRONMENT = {"threads": 3, "inputs": {"data": "abc"}}


def test_an_unfinished_run_resumes_with_its_number_of_threads(tmp_path: Path) -> None:
    run = open_run(tmp_path / "run", recipe_yaml="a: 1\n", environment=ENVIRONMENT)
    (run.checkpoints / "step_00000001").mkdir()
    again = open_run(tmp_path / "run", recipe_yaml="a: 1\n", environment={**ENVIRONMENT, "threads": 8, "gpu": "x"})
    assert again == run
    assert (run.checkpoints / "step_00000001").is_dir()
    recorded = json.loads(run.environment.read_text())
    assert (recorded["threads"], recorded["gpu"], recorded["schema_version"]) == (3, "x", 1)


def started(root: Path, recipe_yaml: str, identity: Identity | None = None) -> RunFolder:
    """A run that has a checkpoint."""
    run = open_run(root, recipe_yaml=recipe_yaml, environment=ENVIRONMENT, identity=identity)
    (run.checkpoints / "step_00000001").mkdir()
    return run


def test_another_recipe_or_other_data_are_refused(tmp_path: Path) -> None:
    started(tmp_path / "run", "a: 1\nlr: 0.1\n")
    with pytest.raises(OutputError, match="another recipe") as caught:
        open_run(tmp_path / "run", recipe_yaml="a: 1\nlr: 0.2\n", environment=ENVIRONMENT)
    assert "'lr: 0.2' instead of 'lr: 0.1'" in str(caught.value)
    assert "`overwrite=True`" in str(caught.value)
    with pytest.raises(OutputError, match="in one of them only"):
        open_run(tmp_path / "run", recipe_yaml="a: 1\n", environment=ENVIRONMENT)
    with pytest.raises(OutputError, match=r"another input \(data\)"):
        open_run(tmp_path / "run", recipe_yaml="a: 1\nlr: 0.1\n", environment={"inputs": {"data": "xyz"}})


def test_the_refusal_says_which_data_changed(tmp_path: Path) -> None:
    samples = [Sample(name, None, (8, 8), Loaded(Instances.from_label_map(np.eye(8, dtype=int)))) for name in "ab"]
    before = Identity.of(Dataset(tuple(samples), ("cell",)))
    samples[1] = replace(samples[1], load=Loaded(Instances.from_label_map(np.eye(8, k=1, dtype=int))))
    now = Identity.of(Dataset(tuple(samples), ("cell",)))
    run = started(tmp_path / "run", "a: 1\n", before)
    assert recorded_identity(run) == before
    other = {"inputs": {"data": "xyz"}}
    with pytest.raises(OutputError, match=r"got: changed since: the annotations of 1 image \(b\)"):
        open_run(run.root, recipe_yaml="a: 1\n", environment=other, identity=now)
    run.inputs.write_text('{"samples": []}')
    with pytest.raises(FormatError, match="inputs.json"):
        open_run(run.root, recipe_yaml="a: 1\n", environment=other, identity=now)


def test_a_run_without_a_checkpoint_does_not_block_its_folder(tmp_path: Path) -> None:
    run = open_run(tmp_path / "run", recipe_yaml="lr: 100\n", environment=ENVIRONMENT)
    run.log.write_text("step,loss\n1,nan\n")
    run.curves.mkdir()
    open_run(run.root, recipe_yaml="lr: 0.1\n", environment={"inputs": {"data": "xyz"}})
    assert run.recipe.read_text() == "lr: 0.1\n"
    assert not run.log.exists()
    assert not run.curves.exists()


def test_a_finished_run_is_refused_unless_overwritten(tmp_path: Path) -> None:
    run = open_run(tmp_path / "run", recipe_yaml="a: 1\n", environment=ENVIRONMENT)
    run.done.write_text("")
    with pytest.raises(OutputError, match="finished"):
        open_run(tmp_path / "run", recipe_yaml="a: 1\n", environment=ENVIRONMENT)
    open_run(tmp_path / "run", recipe_yaml="b: 2\n", environment=ENVIRONMENT, overwrite=True)
    assert not run.done.exists()
    assert run.recipe.read_text() == "b: 2\n"


def test_a_folder_that_is_not_a_run_is_never_changed(tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").write_text("years of work")
    for overwrite in (False, True):
        with pytest.raises(OutputError, match="not a run"):
            open_run(tmp_path, recipe_yaml="a: 1\n", environment=ENVIRONMENT, overwrite=overwrite)
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.txt"]


def test_a_run_killed_between_its_first_two_files_can_start_again(tmp_path: Path) -> None:
    run = open_run(tmp_path / "run", recipe_yaml="a: 1\n", environment=ENVIRONMENT)
    run.environment.unlink()
    open_run(tmp_path / "run", recipe_yaml="a: 1\n", environment=ENVIRONMENT)
    assert run.environment.is_file()
    run.recipe.rename(run.root / ".recipe.yaml.123.partial.yaml")
    run.environment.unlink()
    run.checkpoints.rmdir()
    open_run(tmp_path / "run", recipe_yaml="a: 1\n", environment=ENVIRONMENT)


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
