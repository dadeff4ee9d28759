"""Starting, resuming and refusing a run, and the recorded environment."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from cellwright.core.errors import OutputError
from cellwright.training.environment import describe_environment, git_state
from cellwright.training.run_folder import open_run

ENVIRONMENT = {"threads": 3, "inputs": {"data": "abc"}}


def test_an_unfinished_run_resumes_with_its_number_of_threads(tmp_path: Path) -> None:
    run = open_run(tmp_path / "run", recipe_yaml="a: 1\n", environment=ENVIRONMENT)
    (run.checkpoints / "step_00000001").mkdir()
    again = open_run(tmp_path / "run", recipe_yaml="a: 1\n", environment={**ENVIRONMENT, "threads": 8, "gpu": "x"})
    assert again == run
    assert (run.checkpoints / "step_00000001").is_dir()
    recorded = json.loads(run.environment.read_text())
    assert (recorded["threads"], recorded["gpu"], recorded["schema_version"]) == (3, "x", 1)


def test_another_recipe_or_other_data_are_refused(tmp_path: Path) -> None:
    open_run(tmp_path / "run", recipe_yaml="a: 1\nlr: 0.1\n", environment=ENVIRONMENT)
    with pytest.raises(OutputError, match="another recipe") as caught:
        open_run(tmp_path / "run", recipe_yaml="a: 1\nlr: 0.2\n", environment=ENVIRONMENT)
    assert "'lr: 0.2' instead of 'lr: 0.1'" in str(caught.value)
    assert "`overwrite=True`" in str(caught.value)
    with pytest.raises(OutputError, match="in one of them only"):
        open_run(tmp_path / "run", recipe_yaml="a: 1\n", environment=ENVIRONMENT)
    with pytest.raises(OutputError, match=r"another input \(data\)"):
        open_run(tmp_path / "run", recipe_yaml="a: 1\nlr: 0.1\n", environment={"inputs": {"data": "xyz"}})


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


def test_the_environment_is_json_without_paths(tmp_path: Path) -> None:
    described = describe_environment(torch.device("cpu"), None, {"data": "abc"})
    text = json.dumps(described)
    assert str(Path.home()) not in text or str(Path.home()) == "/"
    assert described["threads"] == torch.get_num_threads()
    assert described["versions"]["torch"]
    assert git_state(tmp_path) is None
