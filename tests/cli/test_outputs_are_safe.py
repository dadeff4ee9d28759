"""Commands that are killed or fail: the same command goes on, an old result stays, no file of the user's is lost."""

from __future__ import annotations

import errno
import io
import shutil
from pathlib import Path

import pytest
from drawn import draw_mask_folder, run


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Drawn annotations, the dataset made from them, and predictions of its images."""
    root = tmp_path_factory.mktemp("safe")
    draw_mask_folder(root / "source", 3)
    assert run("data", "convert", root / "source", "--out", root / "data", "--quiet") == 0
    words = ("--model", "classical", "--save", "masks", "--out", root / "pred", "--quiet")
    assert run("predict", root / "data", *words) == 0
    return root


def contents(root: Path) -> dict[str, bytes]:
    """All files, but for what is no result."""
    files = [path for path in root.rglob("*") if path.is_file() and path.suffix != ".index"]
    return {path.relative_to(root).as_posix(): path.read_bytes() for path in files if ".cellwright" not in path.parts}


def leftovers(root: Path) -> list[str]:
    """Files that no user should see for ever; the lock of a dead process, which says nothing, may be there."""
    names = {path.name for path in root.rglob("*") if path.is_file() and "partial" in path.name}
    return sorted(names | {path.name for path in root.glob("**/.cellwright/*")} - {"claim.json", "lock"})


def no_space(monkeypatch: pytest.MonkeyPatch, at: int) -> None:
    """From the ``at``-th file on, writing fails."""
    plain_open, left = io.open, iter(range(at, -1, -1))

    def opened(*args: object, **kwargs: object) -> object:
        mode = str(args[1] if len(args) > 1 else kwargs.get("mode", "r"))
        if {*mode} & {*"wxa+"} and next(left, 0) == 0:
            raise OSError(errno.ENOSPC, "No space left on device")
        return plain_open(*args, **kwargs)  # type: ignore[call-overload]

    monkeypatch.setattr(io, "open", opened)


def test_a_full_disk(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out, table = tmp_path / "out", tmp_path / "table.csv"
    evaluate = ("evaluate", folder / "pred", "--data", folder / "data", "--metrics", "pq", "--out", out, "--quiet")
    measure = ("measure", folder / "pred", "--out", table, "--quiet")
    for words, at in ((evaluate, 0), (evaluate, 4), (measure, 0)):
        with pytest.MonkeyPatch.context() as patched:
            no_space(patched, at)
            assert run(*words) == 2
        assert "the disk is full" in capsys.readouterr().err
        assert list(tmp_path.iterdir()) == []
    for words in (evaluate, measure):
        assert run(*words) == 0
    before = contents(tmp_path)
    with pytest.MonkeyPatch.context() as patched:
        no_space(patched, 4)
        assert run(*evaluate, "--pictures", "1", "--overwrite") == 2
    assert contents(tmp_path) == before
    assert run(*evaluate, "--pictures", "1", "--overwrite") == 0


def test_a_typing_error_leaves_the_old_result(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "out"
    words = ("--data", folder / "data", "--metrics", "pq", "--pictures", "0", "--out", out, "--overwrite")
    assert run("evaluate", folder / "pred", *words) == 0
    before = contents(out)
    for wrong in (
        ("evaluate", "no_such", *words),
        ("evaluate", folder / "pred", *words, "--metrics", "pqq"),
        ("evaluate", folder / "pred", *words, "--pictuers", "3"),
        ("evaluate", folder / "pred", *words, "--data", folder / "none"),
        ("tune", "nuclei", "--data", folder / "data", "--out", out, "--overwrite"),
        ("compare", folder, folder, "--out", out, "--overwrite"),
        ("data", "convert", folder / "none", "--out", out, "--overwrite"),
    ):
        assert run(*wrong) == 2
        assert contents(out) == before
    assert "not an output" not in capsys.readouterr().err.partition("no_such")[0]


def test_files_of_the_user_stay(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    project = tmp_path / "project"
    (project / "raw_data").mkdir(parents=True)
    (project / "raw_data" / "slide.tif").write_text("only copy")
    before = contents(project)
    for words in (
        ("evaluate", folder / "pred", "--data", folder / "data", "--out", project),
        ("data", "convert", folder / "source", "--out", project),
        ("export", folder / "pred", "--to", "geojson", "--out", project),
        ("tune", "nuclei", "--data", folder / "data", "--out", project),
        ("model", "export", "nuclei@1", "--to", "half", "--out", project),
        ("demo", "--out", project),
    ):
        assert run(*words, "--overwrite") == 2
        assert "this folder is not empty and not an output of this command" in capsys.readouterr().err
        assert contents(project) == before
        assert not (project / ".cellwright").exists()
    export = ("export", folder / "pred", "--to", "geojson", "--out", project / "out", "--quiet")
    assert run(*export) == 0
    shutil.copytree(project / "raw_data", project / "out" / "raw")
    corrected = next((project / "out").glob("*.geojson"))
    assert run(*export, "--overwrite") == 0
    assert (project / "out" / "raw" / "slide.tif").read_text() == "only copy"
    corrected.write_text("corrected in QuPath")
    capsys.readouterr()
    for more in ((), ("--dry-run",)):
        assert run(*export, "--overwrite", *more) == 2
        assert corrected.name in capsys.readouterr().err
    assert corrected.read_text() == "corrected in QuPath"


def test_inputs_are_not_replaced(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data, results = tmp_path / "data", tmp_path / "results.json"
    assert run("data", "convert", folder / "source", "--copy-images", "--out", data, "--quiet") == 0
    assert run("export", folder / "pred", "--to", "coco_results", "--out", results, "--quiet") == 0
    before = contents(tmp_path)
    for words, message in (
        (("data", "convert", data, "--out", data), "an input of this command is part of the output"),
        (("data", "merge", folder / "data", data / "dataset.json", "--out", data), "an input of this command is part"),
        (("export", results, "--to", "coco_results", "--out", results), "the output is an input of this command"),
        (("measure", data, "--out", data / "images" / "x.csv"), None),
        (("export", data, "--to", "coco", "--out", data / "dataset.json"), "part of the output of cellwright data con"),
        (("data", "show", data, "--out", next((data / "images").iterdir())), "part of the output of cellwright data"),
    ):
        capsys.readouterr()
        assert run(*words, "--overwrite", "--quiet") == (2 if message else 0), words
        assert (message or "") in capsys.readouterr().err
    (data / "images" / "x.csv").unlink()
    assert contents(tmp_path) == before


def test_the_suffix_says_what_is_written(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for words, suffix in (
        (("measure", folder / "pred", "--out", tmp_path / "x.xlsx"), ".csv"),
        (("data", "check", folder / "source", "--out", tmp_path / "x.txt"), ".csv"),
        (("data", "show", folder / "source", "--out", tmp_path / "x.jpg"), ".png"),
        (("report", folder / "pred", "--out", tmp_path / "x.pdf"), ".html"),
        (("plan", folder / "source", "--out", tmp_path / "x.json"), ".yaml"),
        (("recipes", "copy", "nuclei/finetune", "--out", tmp_path / "x"), ".yaml"),
    ):
        assert run(*words, "--quiet") == 2, words
        assert f"expected: a name that ends in {suffix}" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_outputs_that_are_links(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "disk").mkdir()
    (tmp_path / "out").symlink_to(tmp_path / "disk")
    (tmp_path / "table.csv").symlink_to(tmp_path / "disk" / "elsewhere.csv")
    export = ("export", folder / "pred", "--to", "geojson", "--out", tmp_path / "out", "--quiet")
    assert run(*export) == 0
    assert run(*export) == 0
    assert run(*export[:3], "imagej_roi", *export[4:], "--overwrite") == 0
    assert run("measure", folder / "pred", "--out", tmp_path / "table.csv", "--quiet") == 0
    assert (tmp_path / "out").is_symlink()
    assert (tmp_path / "table.csv").is_symlink()
    assert {path.suffix for path in (tmp_path / "disk").glob("[!.]*")} == {".csv", ".zip"}
