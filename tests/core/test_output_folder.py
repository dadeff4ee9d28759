"""Output folders: claimed first, complete or unfinished; only files that we wrote are ever removed."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Mapping
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from cellwright.core import files
from cellwright.core.claim import CONTROL, Claim, check_complete
from cellwright.core.errors import FormatError, InputError, OutputError
from cellwright.core.file_identity import FileIdentity
from cellwright.core.output_folder import OutputFolder
from killed import every_kill, run_killed

needs_fork = pytest.mark.skipif(not hasattr(os, "fork"), reason="kills child processes")
FIRST, SECOND = {"the model": "m1"}, {"the model": "m2"}
OLD = {"report.md": "old", "errors/a.png": "old a", "b.csv": "old b"}
NEW = {"report.md": "new", "errors/c.png": "new c", "d/e/f.txt": "new f"}


def write(root: Path, contents: Mapping[str, str]) -> None:
    for name, text in contents.items():
        files.write_text(root / name, text)


def build(folder: Path, request: Mapping[str, str], contents: Mapping[str, str]) -> None:
    with OutputFolder(folder, "evaluate").build(request) as root:
        write(root, contents)


def contents(folder: Path) -> dict[str, str]:
    """The files that a user sees."""
    paths = [path for path in folder.rglob("*") if path.is_file() and CONTROL not in path.parts]
    return {path.relative_to(folder).as_posix(): path.read_text() for path in paths}


def hidden(folder: Path) -> list[str]:
    return sorted(path.relative_to(folder).as_posix() for path in (folder / CONTROL).rglob("*"))


def job(folder: Path, request: Mapping[str, str], images: Mapping[str, str], *, overwrite: bool = False) -> int:
    """A job that can be resumed; the number of images that were done before."""
    output = OutputFolder(folder, "predict")
    unfinished = output.pending if overwrite else output.claim
    resume = unfinished if unfinished is not None and unfinished.request == request else None
    output.start(request, resume=resume)
    try:
        records = {path.stem: json.loads(path.read_text()) for path in output.progress.glob("*.json")}
        for name, text in images.items():
            if name not in records:
                output.verify()
                write(output.root, {f"{name}.txt": text})
                identity = FileIdentity.of(output.root / f"{name}.txt")
                files.write_json(output.progress / f"{name}.json", identity.digest)
        write(output.root, {"all.txt": " ".join(images)})
        output.complete([*(f"{name}.txt" for name in images), "all.txt"])
    finally:
        output.close()
    return len(records)


# --- building all, then moving in


def test_a_result_is_complete_with_its_manifest(tmp_path: Path) -> None:
    out = tmp_path / "out"
    assert OutputFolder(out, "evaluate").claim is None
    assert not out.exists(), "looking changes nothing"
    build(out, FIRST, OLD)
    assert contents(out) == OLD
    assert hidden(out) == [f"{CONTROL}/claim.json"]
    output = OutputFolder(out, "evaluate")
    assert output.answers(FIRST)
    assert output.claim == Claim.read(out)
    assert {name: identity.bytes for name, identity in output.claim.files.items() if identity is not None} == {
        name: len(text) for name, text in OLD.items()
    }
    with pytest.raises(OutputError, match="changed since: the model, `iou` 0.5 instead of none"):
        output.answers({"the model": "m2", "options": {"iou": 0.5}})
    (out / "b.csv").unlink()
    assert not output.answers(FIRST)
    assert output.missing == ["b.csv"]


def test_an_error_leaves_the_old_result_or_nothing(tmp_path: Path) -> None:
    def fail(folder: Path) -> None:
        with pytest.raises(ZeroDivisionError), OutputFolder(folder, "evaluate").build(SECOND) as root:
            write(root, NEW)
            raise ZeroDivisionError

    fail(tmp_path / "out")
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / ".DS_Store").write_text("of the file manager")
    fail(tmp_path / "out")
    assert contents(tmp_path) == {"out/.DS_Store": "of the file manager"}
    build(tmp_path / "out", FIRST, OLD)
    before = contents(tmp_path)
    fail(tmp_path / "out")
    assert contents(tmp_path) == before
    assert hidden(tmp_path / "out") == [f"{CONTROL}/claim.json"]


@needs_fork
def test_a_kill_anywhere_is_finished_by_the_next_command(tmp_path: Path) -> None:
    """Of the first result, and of one that replaces another; in between, the folder has only files of ours."""
    out = tmp_path / "out"
    for _ in every_kill(out, lambda: build(out, FIRST, OLD)):
        assert contents(out) in ({}, OLD) or Claim.read(out).state == "swapping"
        build(out, FIRST, OLD)
        assert contents(out) == OLD
        assert hidden(out) == [f"{CONTROL}/claim.json"]
    write(out, {"mine.txt": "notes", "errors/mine.txt": "notes"})
    mine = {"mine.txt": "notes", "errors/mine.txt": "notes"}
    for _ in every_kill(out, lambda: build(out, SECOND, NEW)):
        assert {name: text for name, text in contents(out).items() if name in mine} == mine
        output = OutputFolder(out, "evaluate")  # finishes to move the new result in, if it was complete
        assert contents(out) == mine | (OLD if output.claim.request == FIRST else NEW)
        build(out, SECOND, NEW)
        assert contents(out) == mine | NEW
        assert hidden(out) == [f"{CONTROL}/claim.json"]


def test_a_result_is_not_moved_over_what_others_wrote(tmp_path: Path) -> None:
    out = tmp_path / "out"
    build(out, FIRST, OLD)
    write(out, {"d/e/f.txt": "mine"})
    with pytest.raises(OutputError, match=r"did not write are in its place[\s\S]*d/e/f.txt"):
        build(out, SECOND, NEW)
    assert contents(out) == OLD | {"d/e/f.txt": "mine"}
    shutil.rmtree(out / "d")
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    (out / "d").symlink_to(elsewhere)
    with pytest.raises(OutputError, match="in its place"):
        build(out, SECOND, NEW)
    assert list(elsewhere.iterdir()) == []
    (out / "d").unlink()
    output = OutputFolder(out, "evaluate")
    with pytest.raises(OutputError, match=r"in its place[\s\S]*b.csv"), output.build(SECOND) as root:
        write(root, NEW)
        write(out, {"b.csv": "edited just now"})
    assert contents(out) == OLD | {"b.csv": "edited just now"}


def test_changed_files_are_the_users(tmp_path: Path) -> None:
    out = tmp_path / "out"
    build(out, FIRST, OLD)
    os.utime(out / "b.csv")
    OutputFolder(out, "evaluate").check_replaceable()  # saved again without a change
    write(out, {"b.csv": "corrected"})
    with pytest.raises(OutputError, match=r"changed after they were written[\s\S]*1 file \(b.csv\)"):
        build(out, SECOND, NEW)
    (out / "b.csv").unlink()
    (tmp_path / "errors").mkdir()
    shutil.move(out / "errors" / "a.png", tmp_path / "errors" / "a.png")
    (out / "errors").rmdir()
    (out / "errors").symlink_to(tmp_path / "errors")
    with pytest.raises(OutputError, match="1 file"):
        build(out, SECOND, NEW)
    assert contents(tmp_path)["errors/a.png"] == "old a"


def test_inputs_are_not_part_of_what_is_replaced(tmp_path: Path) -> None:
    out = tmp_path / "out"
    build(out, FIRST, OLD)
    write(out, {"raw/slide.tif": "mine"})
    output = OutputFolder(out, "evaluate")
    output.check_replaceable([tmp_path, out / "raw", out / "raw" / "slide.tif", tmp_path / "absent"])
    (tmp_path / "link").symlink_to(out / "errors")
    for path in (out, out / "errors", out / "b.csv", tmp_path / "link"):
        with pytest.raises(OutputError, match="an input of this command is part of the output"):
            output.check_replaceable([path])


# --- what is not ours


def test_folders_of_others_are_refused(tmp_path: Path) -> None:
    write(tmp_path, {"mine/thesis.txt": "years of work", "file": "", "link/a": ""})
    with pytest.raises(OutputError, match=r"not an output of this command[\s\S]*thesis.txt"):
        OutputFolder(tmp_path / "mine", "evaluate")
    with pytest.raises(OutputError, match="is a file"):
        OutputFolder(tmp_path / "file", "evaluate")
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / CONTROL).symlink_to(tmp_path / "link")
    with pytest.raises(OutputError, match="is not a folder"):
        OutputFolder(tmp_path / "out", "evaluate")
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    with pytest.raises(OutputError, match="cannot write"):
        OutputFolder(tmp_path / "loop", "evaluate")
    build(tmp_path / "e", FIRST, OLD)
    with pytest.raises(OutputError, match="the output of cellwright evaluate"):
        OutputFolder(tmp_path / "e", "tune")
    assert OutputFolder(tmp_path / "e", "tune", same=("evaluate",)).is_complete


def test_a_folder_that_is_a_link_works_and_the_link_stays(tmp_path: Path) -> None:
    (tmp_path / "disk").mkdir()
    (tmp_path / "out").symlink_to(tmp_path / "disk")
    build(tmp_path / "out", FIRST, OLD)
    build(tmp_path / "out", SECOND, NEW)
    assert (tmp_path / "out").is_symlink()
    assert contents(tmp_path / "disk") == NEW


DAMAGED = (
    "",
    "{}",
    "[]",
    "null",
    '{"schema_version": 2}',
    '{"schema_version": 1, "verb": "evaluate", "request": {}, "state": "new", "files": {}}',
    '{"schema_version": 1, "verb": "evaluate", "request": 3, "state": "complete", "files": {}}',
    '{"schema_version": 1, "verb": "evaluate", "request": {}, "state": "complete", "files": [1]}',
    '{"schema_version": 1, "verb": "evaluate", "request": {}, "state": "complete", "files": {"a": {"x": 1}}}',
    '{"schema_version": 1, "verb": "evaluate", "request": {}, "state": [], "files": {"a": null}}',
)
OUTSIDE = ("../mine.txt", "/etc/hostname", "a/../../mine.txt", ".", "", "a//b", f"{CONTROL}/lock", "a\0b", "./a")


@pytest.mark.parametrize("text", DAMAGED)
def test_damaged_claims_are_errors(text: str, tmp_path: Path) -> None:
    write(tmp_path, {f"out/{CONTROL}/claim.json": text})
    with pytest.raises(FormatError):
        OutputFolder(tmp_path / "out", "evaluate")


@pytest.mark.parametrize("name", OUTSIDE)
def test_claims_name_no_files_outside(name: str, tmp_path: Path) -> None:
    claim = {"schema_version": 1, "verb": "evaluate", "request": {}, "state": "swapping", "files": {}}
    write(tmp_path, {f"out/{CONTROL}/claim.json": json.dumps(claim | {"replaced": {name: None}}), "mine.txt": "mine"})
    with pytest.raises(FormatError, match="damaged"):
        OutputFolder(tmp_path / "out", "evaluate")
    assert (tmp_path / "mine.txt").read_text() == "mine"


def test_folders_of_earlier_versions(tmp_path: Path) -> None:
    out = tmp_path / "out"

    def earlier(folder: Path) -> Claim | None:
        if not (folder / "report.md").is_file():
            return None
        return Claim("evaluate", None, "complete", dict.fromkeys(OLD))

    write(out, OLD | {"mine.txt": "notes"})
    output = OutputFolder(out, "evaluate", earlier=earlier)
    with pytest.raises(OutputError, match="already exists"):
        output.answers(FIRST)
    with output.build(FIRST) as root:
        write(root, NEW)
    assert contents(out) == NEW | {"mine.txt": "notes"}
    assert OutputFolder(out, "evaluate").answers(FIRST)


# --- jobs that can be resumed


def test_a_job_writes_in_place_and_replaces_only_when_complete(tmp_path: Path) -> None:
    out, images = tmp_path / "out", {"a": "1", "b": "2"}
    assert job(out, FIRST, images) == 0
    expected = {"a.txt": "1", "b.txt": "2", "all.txt": "a b"}
    assert contents(out) == expected
    assert hidden(out) == [f"{CONTROL}/claim.json"]
    output = OutputFolder(out, "predict")
    output.start(SECOND)
    assert output.place(output.root / "x" / "c.txt") == out / "x" / "c.txt"
    write(output.root, {"c.txt": "half"})
    output.close()
    assert contents(out) == expected
    job(out, SECOND, {"c": "3"}, overwrite=True)
    assert contents(out) == {"c.txt": "3", "all.txt": "c"}


@needs_fork
def test_a_killed_job_goes_on_where_it_was(tmp_path: Path) -> None:
    out, images = tmp_path / "out", {"a": "1", "b": "2", "c": "3"}
    resumed = set()
    for _ in every_kill(out, lambda: job(out, FIRST, images)):
        resumed.add(job(out, FIRST, images))
        assert len(contents(out)) == 4
        assert hidden(out) == [f"{CONTROL}/claim.json"]
    assert resumed == {0, 1, 2, 3}
    old, resumed = contents(out), set()
    for _ in every_kill(out, lambda: job(out, SECOND, {"x": "7", "a": "8"}, overwrite=True)):
        claim = Claim.read(out)
        assert contents(out) == old or claim.state == "swapping" or claim.request == SECOND
        resumed.add(job(out, SECOND, {"x": "7", "a": "8"}, overwrite=True))
        assert contents(out) == {"x.txt": "7", "a.txt": "8", "all.txt": "x a"}
        assert hidden(out) == [f"{CONTROL}/claim.json"]
    assert resumed == {0, 1, 2}


def test_records_stay_for_images_that_failed(tmp_path: Path) -> None:
    out = tmp_path / "out"
    for request in (FIRST, SECOND):  # in place, and moved in
        output = OutputFolder(out, "predict")
        output.start(request)
        write(output.root, {"a.txt": "1"})
        write(output.progress, {"a.json": f"{request}"})
        output.complete(["a.txt"], keep_progress=True)
        output.close()
        assert contents(out) == {"a.txt": "1"}
        assert (out / CONTROL / "progress" / "a.json").read_text() == f"{request}"
    output = OutputFolder(out, "predict")
    output.start(SECOND, resume=output.claim)
    assert output.root == out
    assert [path.name for path in output.progress.iterdir()] == ["a.json"]
    write(out, {"b.txt": "2"})
    output.complete(["a.txt", "b.txt"])
    output.close()
    assert hidden(out) == [f"{CONTROL}/claim.json"]
    assert sorted(OutputFolder(out, "predict").claim.files) == ["a.txt", "b.txt"]


def test_an_unfinished_job_can_be_replaced(tmp_path: Path) -> None:
    out = tmp_path / "out"
    output = OutputFolder(out, "predict")
    output.start(FIRST)
    write(out, {"a.txt": "1"})
    output.close()
    output = OutputFolder(out, "predict")
    done = {"a.txt": FileIdentity.of(out / "a.txt")}
    write(out, {"a.txt": "corrected"})
    with pytest.raises(OutputError, match="changed after"):
        output.check_replaceable(files=done)
    write(out, {"a.txt": "1"})
    output.start(SECOND, replaces=done)
    assert output.root != out
    write(output.root, {"b.txt": "2"})
    output.complete()
    output.close()
    assert contents(out) == {"b.txt": "2"}


def test_a_folder_that_was_moved_away_is_an_error(tmp_path: Path) -> None:
    out = tmp_path / "out"
    output = OutputFolder(out, "predict")
    output.start(FIRST)
    write(out, {"a.txt": "1"})
    output.verify()
    out.rename(tmp_path / "moved")
    for call in (output.verify, lambda: output.complete(["a.txt"])):
        with pytest.raises(OutputError, match="moved or removed while it was written"):
            call()
    output.close()
    output = OutputFolder(tmp_path / "moved", "predict")
    output.start(FIRST, resume=output.claim)
    (tmp_path / "moved" / "a.txt").unlink()
    with pytest.raises(OutputError, match=r"missing before it is complete[\s\S]*a.txt"):
        output.complete(["a.txt"])
    output.close()


def test_a_folder_written_meanwhile_is_an_error(tmp_path: Path) -> None:
    output = OutputFolder(tmp_path / "out", "evaluate")
    build(tmp_path / "out", FIRST, OLD)
    with pytest.raises(OutputError, match="another process has just written"), output.build(FIRST):
        pass
    write(tmp_path, {"other/mine.txt": ""})
    shutil.rmtree(tmp_path / "other")
    output = OutputFolder(tmp_path / "other", "evaluate")
    write(tmp_path, {"other/mine.txt": ""})
    with pytest.raises(OutputError, match="not an output of this command"), output.build(FIRST):
        pass
    assert contents(tmp_path / "other") == {"mine.txt": ""}


@needs_fork
def test_temporary_files_of_killed_processes_go(tmp_path: Path) -> None:
    out = tmp_path / "out"
    assert run_killed(lambda: build(out, FIRST, OLD), 30)
    dead, alive = "4194999", os.getppid()
    names = [f".x.{pid}{host}.partial.png" for pid in (dead, alive) for host in ("", "-0000")]
    write(out, dict.fromkeys([*names, ".x.partial.png", f".x.{dead}.partial.d/e", f".x.{dead}.txt"], ""))
    build(out, FIRST, OLD)
    assert sorted({*contents(out)} - {*OLD}) == sorted([*names[1:], ".x.partial.png", f".x.{dead}.txt"])


# --- random contents


NAMES = st.sampled_from(["a", "b.csv", "c/a", "c/b.csv", "c/d/e", "report.md", "c", "b.csv/x", ".hidden", "c/.x"])
CONTENTS = st.dictionaries(NAMES, st.sampled_from(["1", "2", "3"]), max_size=5)


def as_tree(names: Mapping[str, str]) -> dict[str, str]:
    """Without files whose names are those of folders."""
    return {name: text for name, text in names.items() if not any(other.startswith(f"{name}/") for other in names)}


@given(users=CONTENTS, old=CONTENTS, edited=CONTENTS, new=CONTENTS)
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_no_file_of_others_is_ever_removed(
    users: dict[str, str], old: dict[str, str], edited: dict[str, str], new: dict[str, str], tmp_path: Path
) -> None:
    """Files are there first, then our result, then they are edited, then it is replaced, then an unfinished job is."""
    shutil.rmtree(tmp_path / "out", ignore_errors=True)
    out, users, old, new = tmp_path / "out", as_tree(users), as_tree(old), as_tree(new)
    write(out, users)
    try:
        build(out, FIRST, old)
        assert not users
    except OutputError:
        assert contents(out) == users
        return
    theirs = dict[str, str]()
    for name, text in edited.items():
        try:
            write(out, {name: text})
            theirs[name] = text
        except OutputError:  # a folder has this name
            continue
    before = contents(out)
    theirs = {name: text for name, text in theirs.items() if old.get(name) != text and name in before}
    for request in (SECOND, FIRST):
        try:
            build(out, request, new)
        except OutputError:
            assert contents(out) == before
        else:
            assert contents(out) == theirs | new
        before = contents(out)
        assert theirs.items() <= before.items()


# --- outputs as inputs


def test_unfinished_outputs_are_no_inputs(tmp_path: Path) -> None:
    out = tmp_path / "out"
    check_complete(out)
    output = OutputFolder(out, "predict")
    output.start(FIRST)
    write(out, {"a.txt": "1"})
    with pytest.raises(InputError, match="output of cellwright predict is not complete"):
        check_complete(out)
    output.complete(["a.txt"])
    output.close()
    check_complete(out)
    output = OutputFolder(out, "predict")
    output.start(SECOND)
    check_complete(out)  # the earlier result
    output.close()
    claim = Claim.read(out)
    Claim("predict", FIRST, "swapping", claim.files, claim.files).write(out)
    write(tmp_path, {"out/mine/b.txt": ""})
    check_complete(out / "mine")
    for path in (out, out / "a.txt"):
        with pytest.raises(InputError, match="half replaced"):
            check_complete(path)


def test_a_swap_goes_on_only_with_files_as_they_were_written(tmp_path: Path) -> None:
    """A result that was interrupted while it was moved in: damaged files are made again, or named."""
    out = tmp_path / "out"
    new = out / ".cellwright" / "new"
    new.mkdir(parents=True)
    (new / "a.csv").write_bytes(b"aaa")
    (out / "b.csv").write_bytes(b"bbb")
    files = {"a.csv": FileIdentity.of(new / "a.csv"), "b.csv": FileIdentity.of(out / "b.csv")}
    Claim("evaluate", {}, "swapping", files).write(out)
    (out / "b.csv").write_bytes(b"b")
    with pytest.raises(OutputError, match=r"damaged, or were changed since[\s\S]*b\.csv"):
        OutputFolder(out, "evaluate")
    assert (out / "b.csv").read_bytes() == b"b"
    (out / "b.csv").write_bytes(b"bbb")
    (new / "a.csv").write_bytes(b"")
    folder = OutputFolder(out, "evaluate")
    assert folder.is_complete
    assert folder.missing == ["a.csv"]
    assert not folder.answers({})
