"""Outputs of the short verbs stay if they are the same, and are replaced only on request and where they are ours."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from cellwright.api.demo import DemoPlan, run
from cellwright.api.outputs import FileOutput, FolderOutput, dataset_output, earlier_output
from cellwright.core.claim import CONTROL
from cellwright.core.errors import FormatError, OutputError
from cellwright.core.files import temporary_path, write_text

REQUEST = {"the model": "m1", "options": {"metric": "pq", "views": None}}


def answer(folder: Path, request: dict | None, *names: str, overwrite: bool = False) -> FolderOutput:
    earlier = earlier_output("evaluate", "report.md", "*.csv")
    output = FolderOutput(folder, "evaluate", inputs=(), overwrite=overwrite, earlier=earlier)
    if request is None or not output.answers(request):
        with output.write(request) as out:
            for name in ("report.md", *names):
                write_text(out / name, name)
    return output


def files_in(folder: Path) -> list[str]:
    paths = [path for path in folder.rglob("*") if path.is_file() and CONTROL not in path.parts]
    return sorted(path.relative_to(folder).as_posix() for path in paths)


def test_the_same_request_is_complete_and_another_is_refused(tmp_path: Path) -> None:
    out = tmp_path / "out"
    assert not answer(out, REQUEST, "a.csv").is_complete
    assert files_in(tmp_path) == ["out/a.csv", "out/report.md"]
    assert answer(out, REQUEST, "a.csv").is_complete
    other = {"the model": "m2", "options": {"metric": "aji", "views": None}}
    with pytest.raises(OutputError, match="changed since: the model, `metric` aji instead of pq"):
        answer(out, other)
    (out / "a.csv").unlink()
    assert not answer(out, REQUEST, "a.csv").is_complete, "one of its files is missing"
    assert files_in(out) == ["a.csv", "report.md"]
    (out / "a.csv").write_text("corrected")
    (out / "report.md").unlink()
    with pytest.raises(OutputError, match="changed after they were written"):
        answer(out, REQUEST, "a.csv")


def test_without_a_request_the_files_are_compared(tmp_path: Path) -> None:
    answer(tmp_path / "out", None, "a.csv")
    assert answer(tmp_path / "out", None, "a.csv").is_complete
    with pytest.raises(OutputError, match="with other content"):
        answer(tmp_path / "out", None, "b.csv")
    answer(tmp_path / "out", None, "b.csv", overwrite=True)
    assert files_in(tmp_path / "out") == ["b.csv", "report.md"]


def test_outputs_of_earlier_versions(tmp_path: Path) -> None:
    """With their record, or a file by which they are known; what is not known to be theirs stays."""
    recorded, marked = tmp_path / "recorded", tmp_path / "marked"
    names = ["report.md", "errors/a.png"]
    for name in (*names, "mine.csv"):
        write_text(recorded / name, name)
    record = {"schema_version": 1, "request": REQUEST, "files": names}
    write_text(recorded / ".request.json", json.dumps(record))
    assert answer(recorded, REQUEST).is_complete
    answer(recorded, REQUEST, overwrite=True)
    assert files_in(recorded) == ["mine.csv", "report.md"]
    for name in ("report.md", "a.csv", "mine.txt"):
        write_text(marked / name, name)
    with pytest.raises(OutputError, match="not an output of this command"):  # anybody may have a report.md
        answer(marked, REQUEST, overwrite=True)
    write_text(marked / "report.md", "# Evaluation\n")
    with pytest.raises(OutputError, match="overwrite=True"):
        answer(marked, REQUEST)
    answer(marked, REQUEST, overwrite=True)
    assert files_in(marked) == ["mine.txt", "report.md"]
    for text in ("[]", '{"request": {}, "files": ["../mine.csv"]}', '{"request": {}, "files": [1], "x"'):
        write_text(tmp_path / "damaged" / ".request.json", text)
        with pytest.raises(FormatError):
            answer(tmp_path / "damaged", REQUEST, overwrite=True)


def test_files_are_compared_and_replaced_when_complete(tmp_path: Path) -> None:
    def write(text: str, *, overwrite: bool = False) -> bool:
        output = FileOutput(tmp_path / "a.csv", tmp_path / "a.png", inputs=[tmp_path / "in.csv"], overwrite=overwrite)
        with output.write() as folder:
            for name in ("a.csv", "a.png"):
                write_text(folder / name, text)
        return output.is_complete

    (tmp_path / "a.png").write_text("mine")
    with pytest.raises(OutputError, match="with other content"):
        write("1")
    assert files_in(tmp_path) == ["a.png"]
    assert not write("1", overwrite=True)
    assert write("1")
    assert files_in(tmp_path) == ["a.csv", "a.png"]
    output = FileOutput(tmp_path / "a.csv", inputs=(), overwrite=True)
    left = temporary_path(tmp_path / "a.csv.d").name.split(".d.")[0] + ".d.4194999.partial.d"
    write_text(tmp_path / left / "a.csv", "of a killed process")
    with pytest.raises(OutputError), output.write() as folder:
        write_text(folder / "a.csv", "half")
        raise OSError
    assert files_in(tmp_path) == ["a.csv", "a.png"]
    assert (tmp_path / "a.csv").read_text() == "1"


def test_a_file_that_is_a_link_an_input_or_part_of_another_output(tmp_path: Path) -> None:
    (tmp_path / "disk").mkdir()
    (tmp_path / "a.csv").symlink_to(tmp_path / "disk" / "b.csv")
    with FileOutput(tmp_path / "a.csv", inputs=(), overwrite=False).write() as folder:
        write_text(folder / "a.csv", "1")
    assert (tmp_path / "a.csv").is_symlink()
    assert files_in(tmp_path / "disk") == ["b.csv"]
    with pytest.raises(OutputError, match="input of this command"):
        FileOutput(tmp_path / "a.csv", inputs=[tmp_path / "disk" / "b.csv"], overwrite=True)
    answer(tmp_path / "e", REQUEST, "a.csv")
    with pytest.raises(OutputError, match="part of the output of cellwright evaluate"):
        FileOutput(tmp_path / "e" / "a.csv", inputs=(), overwrite=True)
    FileOutput(tmp_path / "e" / "b.csv", inputs=(), overwrite=True)
    answer(tmp_path / "f", REQUEST, "model/x")
    with pytest.raises(OutputError, match="part of the output of cellwright evaluate"):
        FolderOutput(tmp_path / "f" / "model", "tune", inputs=(), overwrite=True)


def test_datasets_are_compared_by_content(tmp_path: Path) -> None:
    content = {"schema_version": 1, "info": {}, "images": [{"id": 1, "file_name": "../a.png"}], "annotations": []}
    split = content | {
        "images": [content["images"][0] | {"split": "val", "group": "g"}],
        "info": {"split_by": {"val": 1}},
    }

    def convert(value: dict, *, overwrite: bool = False) -> bool:
        output = dataset_output(tmp_path / "set", "data convert", inputs=(), overwrite=overwrite)
        with output.write() as folder:
            write_text(folder / "dataset.json", json.dumps(value))
        return output.is_complete

    write_text(tmp_path / "set" / "dataset.json", json.dumps(content))  # by an earlier version
    write_text(tmp_path / "set" / "images" / "mine.png", "")
    assert convert(content)
    with pytest.raises(OutputError, match="with other content"):
        convert(content | {"info": {"a": 1}})
    edited = json.dumps(content | {"licence": "edited by hand, then split"})
    write_text(tmp_path / "set" / "dataset.json", edited)
    with dataset_output(tmp_path / "set", "data split", inputs=(), overwrite=False).update(["dataset.json"]) as folder:
        write_text(folder / "dataset.json", json.dumps(split))
    assert convert(content), "it was split since"
    with pytest.raises(OutputError, match="with other content"):
        convert(content | {"annotations": [{"id": 1}]})
    assert not convert(content | {"annotations": [{"id": 1}]}, overwrite=True)
    write_text(tmp_path / "set" / "dataset.json", edited)
    with pytest.raises(OutputError, match="changed after they were written"):
        convert(content, overwrite=True)
    assert files_in(tmp_path / "set") == ["dataset.json", "images/mine.png"]
    write_text(tmp_path / "theirs" / "dataset.json", "{}")
    with pytest.raises(OutputError, match="not an output of this command"):
        dataset_output(tmp_path / "theirs", "data convert", inputs=(), overwrite=True)


def test_a_folder_with_somebodys_data_is_no_demo(tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "mine.txt").write_text("precious")
    with pytest.raises(OutputError, match="not an output of this command"):
        run(DemoPlan(out=tmp_path, overwrite=True))
    assert (tmp_path / "data" / "mine.txt").read_text() == "precious"
