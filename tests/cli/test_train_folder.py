"""``train`` and its folder: nothing of the user's is lost, two trainings never write one run, and old runs stay."""

from __future__ import annotations

import importlib
import shutil
from pathlib import Path

import pytest
from drawn import run
from test_train_again import CASE, make_dataset, train

from cellwright.core.output_folder import OutputFolder

STOP = ("--max-minutes", "0.0001")


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("data") / "data"
    make_dataset(CASE / "src_right", folder)
    return folder


@pytest.fixture(scope="module")
def finished(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run; tests copy it."""
    folder = tmp_path_factory.mktemp("runs") / "run"
    assert train(data, folder, "--set=train.length=2 steps") == 0
    return folder


def weights(folder: Path) -> bytes:
    return (folder / "model" / "weights.safetensors").read_bytes()


def test_a_project_folder_is_never_touched(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The case 01: a project folder with a recipe, images and a repository."""
    for name in ("raw_data/slide.tif", ".git/HEAD"):
        (tmp_path / name).parent.mkdir()
        (tmp_path / name).write_text("the only copy")
    shutil.copy(CASE / "tiny.yaml", tmp_path / "recipe.yaml")
    before = sorted(tmp_path.rglob("*"))
    monkeypatch.chdir(tmp_path)
    assert run("train", "recipe.yaml", "--data", data, "--out", ".", "--overwrite", "--device=cpu") == 2
    assert "not an output of this command" in capsys.readouterr().err
    assert sorted(tmp_path.rglob("*")) == before


def test_a_run_in_use_is_not_written(data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The case 14."""
    assert train(data, tmp_path / "run", *STOP) == 0
    other = OutputFolder(tmp_path / "run", "train")
    other.start({}, resume=other.claim)
    log = (tmp_path / "run" / "log.csv").read_bytes()
    capsys.readouterr()
    assert train(data, tmp_path / "run", "--overwrite") == 2
    assert "this folder is in use by cellwright train (process" in capsys.readouterr().err
    assert (tmp_path / "run" / "log.csv").read_bytes() == log
    other.close()


def test_overwrite_leaves_the_old_run_until_the_new_one_is_finished(
    data: Path, finished: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Also where the folder is a link (the case 15), which stays."""
    shutil.copytree(finished, tmp_path / "real")
    out, old = tmp_path / "run", weights(finished)
    out.symlink_to(tmp_path / "real", target_is_directory=True)
    (tmp_path / "real" / "notes.txt").write_text("mine")
    new = ("--overwrite", "--set=train.lr=0.005")
    assert train(data, out, *new, "--set=train.lengthh=4") == 2
    assert train(tmp_path / "no data", out, *new) == 2
    assert weights(out) == old
    capsys.readouterr()
    assert train(data, out, *new, *STOP) == 0
    assert f"will write {out}/, in place of the old run once the new one is finished" in capsys.readouterr().err
    assert weights(out) == old
    assert train(data, out, "--set=train.length=2 steps") == 0
    assert f"already complete: {out}/" in capsys.readouterr().err
    assert train(data, out, *new) == 0
    assert "resuming from step 1" in capsys.readouterr().err
    assert weights(out) != old
    assert out.is_symlink()
    assert (out / "notes.txt").read_text() == "mine"
    assert not (out / ".cellwright" / "new").exists()
    (out / "model" / "README.md").write_text("what I know about this model")
    assert train(data, out, "--overwrite") == 2
    assert "1 file (model/README.md)" in capsys.readouterr().err


def test_files_of_a_finished_run_that_are_empty_are_made_again(
    data: Path, finished: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = shutil.copytree(finished, tmp_path / "run")
    for name in ("metrics.json", "recipe.yaml", "model/weights.safetensors", "model/model.json", "DONE"):
        before = (out / name).read_bytes()
        (out / name).unlink()
        (out / name).write_bytes(b"")
        assert train(data, out, "--set=train.length=2 steps") == 0
        assert (out / name).read_bytes() == before, name
    capsys.readouterr()
    assert train(data, out, "--set=train.length=2 steps") == 0
    assert "already complete" in capsys.readouterr().err


def test_repeats_with_overwrite_go_on_after_the_seeds_that_are_done(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ("--repeat", "2", "--set=train.length=2 steps")
    assert train(data, tmp_path / "runs", *words) == 0
    loop, calls = importlib.import_module("cellwright.training.loop"), []
    whole = loop.train

    def interrupted(*arguments: object, **options: object) -> object:
        calls.append(arguments)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return whole(*arguments, **options)

    with monkeypatch.context() as patch:
        patch.setattr(loop, "train", interrupted)
        assert train(data, tmp_path / "runs", *words, "--overwrite") == 130
    capsys.readouterr()
    assert train(data, tmp_path / "runs", *words, "--overwrite") == 0
    text = capsys.readouterr().err
    assert f"already complete: {tmp_path / 'runs' / 'seed_0'}" in text
    assert "seed_1/, in place of the old run" in text
    assert train(data, tmp_path / "runs", *words, "--overwrite", "--dry-run") == 0
    assert "seed_0/, in place of the old run" in capsys.readouterr().err


def test_a_file_in_the_place_of_the_first_model_stays(
    data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A README of the user in the folder of a run that has not saved a model."""
    assert train(data, tmp_path / "run", *STOP) == 0
    shutil.rmtree(tmp_path / "run" / "checkpoints")
    (tmp_path / "run" / "model" / "README.md").write_text("the only copy")
    assert train(data, tmp_path / "run", *STOP) == 2
    printed = capsys.readouterr().err
    assert "files that cellwright did not write" in printed
    assert "README.md" in printed
    assert (tmp_path / "run" / "model" / "README.md").read_text() == "the only copy"
    (tmp_path / "run" / "model" / "README.md").unlink()
    assert train(data, tmp_path / "run", *STOP) == 0
