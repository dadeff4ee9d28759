"""Starting, resuming, refusing and replacing a run."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from cellwright.core.claim import CONTROL
from cellwright.core.dataset import Dataset, Loaded, Sample
from cellwright.core.errors import OutputError
from cellwright.core.instances import Instances
from cellwright.core.output_folder import NEW
from cellwright.data.identity import Identity
from cellwright.training.run_folder import RunFolder
from cellwright.training.run_output import RunOutput

ENVIRONMENT = {"threads": 3, "inputs": {"data": "abc"}}


def begin(
    root: Path,
    recipe_yaml: str = "a: 1\n",
    environment: dict[str, Any] = ENVIRONMENT,
    identity: Identity | None = None,
    *,
    overwrite: bool = False,
    steps: int = 1,
    finish: bool = False,
) -> RunFolder:
    """Start or resume a run, which gets as far as a checkpoint (steps = 1) or not, or finishes."""
    output = RunOutput(root, overwrite=overwrite)
    environment = output.examine(recipe_yaml, environment, identity)
    with output.started(recipe_yaml, environment, identity) as run:
        if steps:
            (run.checkpoints / f"step_{steps:08d}").mkdir(exist_ok=True)
            (run.checkpoints / f"step_{steps:08d}" / "state.json").write_text(recipe_yaml)
        if finish:
            run.done.write_text("finished")
            output.complete()
    return run


def test_an_unfinished_run_resumes_with_its_number_of_threads(tmp_path: Path) -> None:
    run = begin(tmp_path / "run")
    assert begin(tmp_path / "run", environment={**ENVIRONMENT, "threads": 8, "gpu": "x"}, steps=2) == run
    assert len(list(run.checkpoints.iterdir())) == 2
    recorded = json.loads(run.environment.read_text())
    assert (recorded["threads"], recorded["gpu"], recorded["schema_version"]) == (3, "x", 1)


def test_another_recipe_or_other_data_are_refused(tmp_path: Path) -> None:
    run = begin(tmp_path / "run", "a: 1\nlr: 0.1\n")
    with pytest.raises(OutputError, match="another recipe") as caught:
        begin(tmp_path / "run", "a: 1\nlr: 0.2\n")
    assert "'lr: 0.2' instead of 'lr: 0.1'" in str(caught.value)
    assert "`overwrite=True`" in str(caught.value)
    with pytest.raises(OutputError, match="in one of them only"):
        begin(tmp_path / "run", "a: 1\n")
    with pytest.raises(OutputError, match=r"another input \(data\)"):
        begin(tmp_path / "run", "a: 1\nlr: 0.1\n", {"inputs": {"data": "xyz"}})
    run.recipe.write_text("a: 2\n")  # what a run was started with is in its claim
    with pytest.raises(OutputError, match=r"another recipe\n  where: .*recipe.yaml\n  fix"):
        begin(tmp_path / "run", "a: 2\n")


def test_the_refusal_says_which_data_changed(tmp_path: Path) -> None:
    samples = [Sample(name, None, (8, 8), Loaded(Instances.from_label_map(np.eye(8, dtype=int)))) for name in "ab"]
    before = Identity.of(Dataset(tuple(samples), ("cell",)))
    samples[1] = replace(samples[1], load=Loaded(Instances.from_label_map(np.eye(8, k=1, dtype=int))))
    now = Identity.of(Dataset(tuple(samples), ("cell",)))
    run = begin(tmp_path / "run", identity=before)
    assert RunOutput(tmp_path / "run").recorded_identity() == before
    other = {"inputs": {"data": "xyz"}}
    with pytest.raises(OutputError, match=r"got: changed since: the annotations of 1 image \(b\)"):
        begin(tmp_path / "run", environment=other, identity=now)
    run.inputs.write_text('{"samples": []}')
    assert RunOutput(tmp_path / "run").recorded_identity() is None
    with pytest.raises(OutputError, match=r"another input \(data\)"):
        begin(tmp_path / "run", environment=other, identity=now)


@pytest.mark.parametrize("name", ["recipe.yaml", "environment.json"])
def test_damaged_files_are_written_again(tmp_path: Path, name: str) -> None:
    run = begin(tmp_path / "run")
    (run.root / name).write_bytes(b"\xff{")
    begin(tmp_path / "run")
    assert run.recipe.read_text() == "a: 1\n"
    assert json.loads(run.environment.read_text())["inputs"] == {"data": "abc"}
    with pytest.raises(OutputError, match="another recipe"):
        begin(tmp_path / "run", "a: 2\n")


def test_a_run_without_a_checkpoint_does_not_block_its_folder(tmp_path: Path) -> None:
    run = begin(tmp_path / "run", "lr: 100\n", steps=0)
    run.log.write_text("step,loss\n1,nan\n")
    run.curves.mkdir()
    (run.curves / "losses.png").touch()
    (run.root / "notes.txt").touch()
    begin(tmp_path / "run", "lr: 0.1\n", {"inputs": {"data": "xyz"}}, steps=0)
    assert run.recipe.read_text() == "lr: 0.1\n"
    names = {path.name for path in run.root.iterdir()}
    assert names == {CONTROL, "recipe.yaml", "environment.json", "checkpoints", "notes.txt"}


def test_a_finished_run_is_complete(tmp_path: Path) -> None:
    begin(tmp_path / "run", finish=True)
    output = RunOutput(tmp_path / "run")
    output.examine("a: 1\n", ENVIRONMENT, None)
    assert output.is_finished
    with pytest.raises(OutputError, match="another recipe"):
        RunOutput(tmp_path / "run").examine("b: 2\n", ENVIRONMENT, None)
    (tmp_path / "run" / "recipe.yaml").write_text("")
    output = RunOutput(tmp_path / "run")
    output.examine("a: 1\n", ENVIRONMENT, None)
    assert not output.is_finished  # it goes on from its last checkpoint, and writes the file again
    (tmp_path / "run" / "checkpoints" / "step_00000001" / "state.json").unlink()
    (tmp_path / "run" / "checkpoints" / "step_00000001").rmdir()
    with pytest.raises(OutputError, match=r"missing or empty[\s\S]*recipe.yaml"):
        RunOutput(tmp_path / "run").examine("a: 1\n", ENVIRONMENT, None)


def test_a_run_is_replaced_once_the_new_one_is_finished(tmp_path: Path) -> None:
    old, new = tmp_path / "run", tmp_path / "run" / CONTROL / NEW
    begin(old, finish=True)
    (old / "notes.txt").write_text("mine")
    assert begin(old, "b: 2\n", overwrite=True).root == new
    assert (old / "recipe.yaml").read_text() == "a: 1\n"
    output = RunOutput(old, overwrite=True)
    output.examine("c: 3\n", ENVIRONMENT, None)
    assert output.discarded == "this run was started with another recipe"
    output = RunOutput(old)
    output.examine("a: 1\n", ENVIRONMENT, None)
    assert output.is_finished
    assert begin(old, "b: 2\n", overwrite=True, steps=2).root == new  # resumed
    assert {path.name for path in (new / "checkpoints").iterdir()} == {"step_00000001", "step_00000002"}
    begin(old, "b: 2\n", overwrite=True, steps=2, finish=True)
    assert (old / "recipe.yaml").read_text() == "b: 2\n"
    assert (old / "notes.txt").read_text() == "mine"
    assert len(list((old / "checkpoints").iterdir())) == 2
    assert not new.exists()
    (old / "recipe.yaml").write_text("# a note\nb: 2\n")
    with pytest.raises(OutputError, match="changed after they were written"):
        begin(old, "d: 4\n", overwrite=True)


def test_an_unfinished_run_is_replaced_and_an_interrupted_overwrite_goes_on(tmp_path: Path) -> None:
    begin(tmp_path / "run", steps=5)
    run = begin(tmp_path / "run", "b: 2\n", overwrite=True, finish=True)
    assert not (tmp_path / "run" / "checkpoints" / "step_00000005").exists()
    run = begin(tmp_path / "new", overwrite=True)
    assert run.root == tmp_path / "new"
    begin(tmp_path / "new", overwrite=True, steps=2)
    assert len(list(run.checkpoints.iterdir())) == 2


def test_inputs_and_other_folders_are_never_touched(tmp_path: Path) -> None:
    for name in ("recipe.yaml", "raw_data/slide.tif", ".git/HEAD"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("a: 1\n")
    before = sorted(tmp_path.rglob("*"))
    for overwrite in (False, True):
        with pytest.raises(OutputError, match="not an output of this command"):
            begin(tmp_path, overwrite=overwrite)
    assert sorted(tmp_path.rglob("*")) == before
    begin(tmp_path / "run", finish=True)
    start = tmp_path / "run" / "checkpoints"
    with pytest.raises(OutputError, match="an input of this command is part of the output"):
        RunOutput(tmp_path / "run", overwrite=True, inputs=[start]).examine("b: 2\n", ENVIRONMENT, None)


def test_a_run_that_moves_to_other_hardware_says_so(tmp_path: Path) -> None:
    modern = {**ENVIRONMENT, "device": "cpu", "processor": "AVX512", "precision": "bf16"}
    older = {**modern, "processor": "AVX2", "precision": "float32"}
    run = begin(tmp_path / "run", environment=modern)
    output = RunOutput(run.root)
    assert output.examine("a: 1\n", modern, None)["precision"] == "bf16"
    assert output.moved is None
    output = RunOutput(run.root)
    environment = output.examine("a: 1\n", older, None)
    assert (environment["precision"], environment["began_in"]) == ("float32", "bf16")
    assert output.moved == "AVX2 instead of AVX512, float32 instead of bf16"
    begin(tmp_path / "run", environment=older)
    output = RunOutput(run.root)
    gpu = {**modern, "device": "cuda:0", "gpu": "X"}
    environment = output.examine("a: 1\n", gpu, None)
    assert (environment["precision"], environment["began_in"]) == ("float32", "bf16")  # float32 is fast everywhere
    assert output.moved == "cuda:0 instead of cpu, AVX512 instead of AVX2"


@pytest.mark.parametrize("finished", [False, True])
def test_runs_of_earlier_versions(tmp_path: Path, finished: bool) -> None:
    run = begin(tmp_path / "run", "a: 1\nlr: 0.1\n", finish=finished)
    (run.root / CONTROL / "claim.json").unlink()
    with pytest.raises(OutputError, match=r"'lr: 0.2' instead of 'lr: 0.1'"):
        begin(tmp_path / "run", "a: 1\nlr: 0.2\n")
    with pytest.raises(OutputError, match=r"another input \(data\)"):
        begin(tmp_path / "run", "a: 1\nlr: 0.1\n", {"inputs": {"data": "xyz"}})
    output = RunOutput(tmp_path / "run")
    environment = output.examine("a: 1\nlr: 0.1\n", {**ENVIRONMENT, "threads": 8}, None)
    assert (output.is_finished, environment["threads"]) == (finished, 3)
    begin(tmp_path / "run", "b: 2\n", overwrite=True, finish=True)
    assert run.recipe.read_text() == "b: 2\n"


def test_a_run_that_was_killed_at_once_starts_again(tmp_path: Path) -> None:
    output = RunOutput(tmp_path / "run")
    output.examine("a: 1\n", ENVIRONMENT, None)
    with pytest.raises(KeyboardInterrupt), output.started("a: 1\n", ENVIRONMENT, None) as run:
        run.recipe.unlink()
        run.environment.unlink()
        raise KeyboardInterrupt
    begin(tmp_path / "run", "b: 2\n")
