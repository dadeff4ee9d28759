"""Outputs are kept if they are the same, and replaced only on request and only where they are ours."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from cellwright.api.demo import DemoPlan, run
from cellwright.api.outputs import REQUEST_FILE, OutputFolder, check_same
from cellwright.core.errors import FormatError, OutputError

REQUEST = {"the model": "m1", "options": {"metric": "pq", "views": None}}


def answer(folder: Path, request: dict | None, *names: str, overwrite: bool = False) -> OutputFolder:
    output = OutputFolder(folder, "report.md", request, overwrite=overwrite)
    if not output.is_complete:
        with output.write() as out:
            for name in ("report.md", *names):
                (out / name).parent.mkdir(exist_ok=True)
                (out / name).write_text(name)
    return output


def files_in(folder: Path) -> list[str]:
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*"))


def test_the_same_request_is_complete_and_another_is_refused(tmp_path: Path) -> None:
    answer(tmp_path / "out", REQUEST, "a.csv")
    assert files_in(tmp_path) == ["out", f"out/{REQUEST_FILE}", "out/a.csv", "out/report.md"]
    assert answer(tmp_path / "out", REQUEST, "a.csv").is_complete
    other = {"the model": "m2", "options": {"metric": "aji", "views": None}}
    with pytest.raises(OutputError, match="changed since: the model, `metric` aji instead of pq"):
        answer(tmp_path / "out", other)
    (tmp_path / "out" / "a.csv").unlink()
    assert not OutputFolder(tmp_path / "out", "report.md", REQUEST).is_complete, "one of its files is missing"
    (tmp_path / "out" / REQUEST_FILE).write_text("[]")
    with pytest.raises(FormatError, match="damaged"):
        answer(tmp_path / "out", REQUEST)


def test_only_our_files_are_replaced_and_only_once_the_new_ones_are_complete(tmp_path: Path) -> None:
    answer(tmp_path / "out", REQUEST, "errors/a.png", "b.csv")
    (tmp_path / "out" / "mine.txt").write_text("notes")
    output = OutputFolder(tmp_path / "out", "report.md", {"the model": "m2"}, overwrite=True)
    with pytest.raises(ZeroDivisionError), output.write() as out:
        (out / "report.md").write_text("half")
        raise ZeroDivisionError
    assert (tmp_path / "out" / "report.md").read_text() == "report.md"
    assert (tmp_path / "out" / "b.csv").is_file()
    answer(tmp_path / "out", {"the model": "m2"}, "c.csv", overwrite=True)
    assert files_in(tmp_path) == ["out", *(f"out/{name}" for name in (REQUEST_FILE, "c.csv", "mine.txt", "report.md"))]


def test_an_interrupted_output_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt), OutputFolder(tmp_path / "out", "report.md", REQUEST).write() as out:
        (out / "a.csv").write_text("")
        raise KeyboardInterrupt
    assert files_in(tmp_path) == []


def test_without_a_request_the_files_are_compared(tmp_path: Path) -> None:
    answer(tmp_path / "out", None, "a.csv")
    assert answer(tmp_path / "out", None, "a.csv").is_complete
    (tmp_path / "out" / "a.csv").write_text("changed")
    with pytest.raises(OutputError, match="with other content"):
        answer(tmp_path / "out", None, "a.csv")
    answer(tmp_path / "out", None, "b.csv", overwrite=True)
    assert files_in(tmp_path / "out") == ["b.csv", "report.md"]


def test_folders_with_other_files_and_working_folders_are_never_removed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("years of work")
    for overwrite in (False, True):
        with pytest.raises(OutputError, match="not an output of this command"):
            OutputFolder(tmp_path / "mine", "report.md", REQUEST, overwrite=overwrite)
    old = tmp_path / "old"
    old.mkdir()
    (old / "report.md").write_text("of an earlier version")
    with pytest.raises(OutputError, match="overwrite=True"):
        OutputFolder(old, "report.md", REQUEST)
    monkeypatch.chdir(old)  # such as --out .
    with pytest.raises(OutputError, match="not removed"):
        OutputFolder(Path(), "report.md", REQUEST, overwrite=True)
    monkeypatch.chdir(tmp_path)
    answer(old, REQUEST, overwrite=True)
    assert files_in(old) == [REQUEST_FILE, "report.md"]


def test_files_and_datasets_are_compared_by_content(tmp_path: Path) -> None:
    content = {"info": {}, "images": [{"id": 1, "file_name": "../a.png"}], "annotations": []}

    def write(value: dict):
        def to(out: Path) -> list[Path]:
            out = out if out.suffix == ".json" else out / "dataset.json"
            out.parent.mkdir(exist_ok=True)
            out.write_text(json.dumps(value))
            return [out]

        return to

    for out in (tmp_path / "data.v2", tmp_path / "a.json"):
        if out.suffix != ".json":
            out.mkdir()
        target = out if out.suffix == ".json" else out / "dataset.json"
        target.write_text(json.dumps(content))
        assert check_same(out, write(content)) == [target]
        with pytest.raises(OutputError, match="with other content"):
            check_same(out, write(content | {"info": {"a": 1}}))
    folder = tmp_path / "set"
    folder.mkdir()
    split = content | {
        "images": [content["images"][0] | {"split": "val", "group": "g"}],
        "info": {"split_by": {"val": 1}},
    }
    (folder / "dataset.json").write_text(json.dumps(split))
    assert check_same(folder, write(content)) == [folder / "dataset.json"], "it was split since"
    with pytest.raises(OutputError, match="with other content"):
        check_same(folder, write(content | {"annotations": [{"id": 1}]}))
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith(".")] == []


def test_a_folder_with_somebodys_data_is_no_demo(tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "mine.txt").write_text("precious")
    with pytest.raises(OutputError, match="not an output of this command"):
        run(DemoPlan(out=tmp_path, overwrite=True))
    assert (tmp_path / "data" / "mine.txt").read_text() == "precious"
