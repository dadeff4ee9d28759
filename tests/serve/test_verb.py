"""``cellwright serve`` on the command line, and its events."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import socket
import sys
import threading
import time
from contextlib import closing, suppress
from pathlib import Path

import cv2
import numpy as np
import pytest
import tifffile
from drawn import run

from cellwright.cli.app import main
from cellwright.core.interrupts import CommandSignals, handle_signals
from cellwright.serve.events import Events
from cellwright.serve.project import Project


@pytest.fixture
def images(tmp_path: Path) -> Path:
    (tmp_path / "images").mkdir()
    cv2.imwrite(str(tmp_path / "images" / "a.png"), np.zeros((40, 50), np.uint8))
    return tmp_path / "images"


def test_without_the_extra_it_says_what_to_install(
    images: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "fastapi", None)
    assert run("serve", images) == 2
    assert 'pip install "cellwright[serve]"' in capsys.readouterr().err
    assert [path.name for path in images.parent.iterdir()] == ["images"]


def test_a_dry_run_names_the_project_and_writes_nothing(images: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("serve", images, "--dry-run") == 0
    assert f"project: {images}_project/ (new)" in capsys.readouterr().err
    assert [path.name for path in images.parent.iterdir()] == ["images"]


@pytest.mark.parametrize("given", ["nothing", "file", "foreign", "run", "damaged"])
def test_what_cannot_be_served_is_refused(images: Path, given: str, capsys: pytest.CaptureFixture[str]) -> None:
    words: list[object] = [images, "--out", images.parent / "out"]
    (images.parent / "out").mkdir()
    (images.parent / "out" / "mine.txt").write_text("mine")
    expected = "not empty and not an output"
    if given == "nothing":
        words, expected = [images / "nothing"], "there is no such file"
    elif given == "file":
        (images / "notes.txt").write_text("text")
        words, expected = [images / "notes.txt"], "not an image"
    elif given == "run":
        for name in ("recipe.yaml", "log.csv"):
            (images / name).touch()
        words, expected = [images], "this is a run"
    elif given == "damaged":
        from cellwright.serve.project import Project

        project = Project(images.parent / "out" / "project")
        project.close()
        (images.parent / "out" / "project" / "project.json").write_text("{")
        words, expected = [images.parent / "out" / "project"], "JSON"
    assert run("serve", *words) == 2
    assert expected in capsys.readouterr().err
    names = {path.name for path in images.parent.iterdir()} | {path.name for path in (images.parent / "out").iterdir()}
    assert names - {"project"} == {"images", "out", "mine.txt"}


def test_a_port_that_is_in_use_is_named(images: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("fastapi")
    with socket.create_server(("127.0.0.1", 0)) as taken:
        assert run("serve", images, "--port", taken.getsockname()[1]) == 2
    assert "choose another --port" in capsys.readouterr().err


def test_a_project_is_served_once(images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("fastapi")
    from page_client import open_page

    with open_page(images, tmp_path / "images_project"):
        assert run("serve", images) == 2
        assert "in use by cellwright serve" in capsys.readouterr().err
    records = json.loads((tmp_path / "images_project" / "project.json").read_text())["images"]
    assert [record["path"] for record in records] == ["../images/a.png"]


@pytest.mark.skipif(sys.platform == "win32", reason="signals of POSIX")
@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 0), (signal.SIGHUP, 129)])
def test_signals_end_the_server_as_they_end_other_commands(images: Path, number: int, code: int) -> None:
    """Ctrl-C is how it is meant to end; whatever ends it, the project is saved and free."""
    pytest.importorskip("fastapi")
    port = free_port()

    def send() -> None:
        for _ in range(500):
            with suppress(OSError), socket.create_connection(("127.0.0.1", port)) as page:
                page.sendall(b"GET / HTTP/1.0\r\n\r\n")  # answered once it serves
                if page.recv(1):
                    break
            time.sleep(0.02)
        os.kill(os.getpid(), number)

    sender, signals = threading.Thread(target=send), CommandSignals()
    with handle_signals(signals), pytest.raises(SystemExit) as ended:
        sender.start()
        main(["serve", str(images), "--port", str(port)], signals)
    sender.join()
    assert (ended.value.code or 0) == code
    with closing(Project(images.parent / "images_project")) as project:
        assert [record.id for record in project.images] == ["a"]


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        return taken.getsockname()[1]


def test_events_reach_all_tabs_and_a_tab_that_is_behind_loads_again() -> None:
    events = Events()

    async def read(n: int, wait: float) -> list[str]:
        stream = events.stream()
        seen = [(await anext(stream)).decode()]
        await asyncio.sleep(wait)
        seen += [(await anext(stream)).decode() for _ in range(n)]
        events.close()
        async for _ in stream:  # it ends
            pass
        return [json.loads(text.removeprefix("data: "))["kind"] for text in seen]

    async def both() -> list[list[str]]:
        tabs = asyncio.gather(read(2, 0), read(2, 0))
        await asyncio.sleep(0.02)
        sender = threading.Thread(target=lambda: [events.publish({"kind": kind}) for kind in ("edit", "job")])
        sender.start()
        return await tabs

    assert asyncio.run(both()) == [["hello", "edit", "job"]] * 2

    async def behind() -> list[str]:
        tab = asyncio.ensure_future(read(2, 0.1))
        await asyncio.sleep(0.02)
        for k in range(300):
            events.publish({"kind": f"edit {k}"})
        return await tab

    assert asyncio.run(behind()) == ["hello", "reload", "edit 257"]


def test_a_plane_of_a_stack_is_chosen_for_the_project(tmp_path: Path) -> None:
    from cellwright.data.images.reading import Reading
    from cellwright.serve.project import Page, Project, find_source

    planes = np.stack([np.full((40, 50), value, np.uint8) for value in (10, 20, 30)])
    tifffile.imwrite(tmp_path / "a.tif", planes, imagej=True, metadata={"axes": "ZYX"})
    for part, state in ((Reading(), "several images or planes"), (Reading(z="max"), "")):
        with closing(Project(tmp_path / f"project {part.z}")) as project:
            project.add(find_source(tmp_path / "a.tif", part))
            (record,) = project.images
            assert state in record.note
            if not state:
                assert np.unique(Page(project).pixels("a").raw(0, 0, 0)).tolist() == [30]


def test_annotations_that_are_not_read_are_named(tmp_path: Path) -> None:
    from cellwright.serve.project import find_source

    folder = tmp_path / "images"
    folder.mkdir()
    for name in ("a", "b"):
        cv2.imwrite(str(folder / f"{name}.png"), np.zeros((40, 50), np.uint8))
    (folder / "a.json").write_text('{"shapes": [{"label": "cell", "points": [[1, 2]]}], "imagePath": "a.png"}')
    cv2.imwrite(str(folder / "b_masks.png"), np.eye(40, dtype=np.uint8))
    found = find_source(folder)
    assert not found.is_annotated
    assert [note.text for note in found.dataset.notes] == [
        "no annotations were read, only images: several formats match"
    ]
