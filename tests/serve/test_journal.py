"""No edit that was acknowledged is lost: kills, power cuts, full disks, damage."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import zlib
from http.client import HTTPConnection, HTTPException
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

from cellwright.core.errors import FormatError, OutputError
from cellwright.serve.actions import Edit, make
from cellwright.serve.annotation import Annotation
from cellwright.serve.journal import MARK, Journal
from cellwright.serve.starts import empty_start

HW = (200, 300)


def draw(annotation: Annotation, k: int) -> None:
    y, x = 5 + 20 * (k // 10), 5 + 25 * (k % 10)
    outline = [(y, x), (y, x + 9.5), (y + 9.5, x + 9.5), (y + 9.5, x)]
    make(annotation, Edit(op="draw", outline=outline), ("cell",))


def written(path: Path, n: int) -> bytes:
    """The journal of an image in which n squares were drawn."""
    annotation = Annotation(path, HW, empty_start)
    for k in range(n):
        draw(annotation, k)
    annotation.close()
    return path.read_bytes()


@pytest.fixture(scope="module")
def journal(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    return written(tmp_path_factory.mktemp("journal") / "a.journal", 5)


def n_objects(path: Path) -> tuple[int, list[str]]:
    annotation = Annotation(path, HW, empty_start)
    annotation.close()
    return len(annotation.table), annotation.notes


def test_a_torn_end_is_moved_aside_and_said(journal: bytes, tmp_path: Path) -> None:
    path, last = tmp_path / "a.journal", journal.rindex(MARK)
    for end in (last + 1, last + 19, last + 40, len(journal) - 1):
        path.write_bytes(journal[:end])
        n, notes = n_objects(path)
        assert n == 4
        assert len(notes) == 1
        assert "moved to a.torn" in notes[0]
        assert path.read_bytes() == journal[:last]
        (torn,) = tmp_path.glob("a.torn*")
        assert torn.read_bytes() == journal[last:end]
        torn.unlink()
        assert n_objects(path) == (4, [])


@pytest.mark.parametrize("place", ["mark", "length", "middle", "zeros"])
def test_damage_before_the_end_is_refused_and_nothing_is_changed(journal: bytes, tmp_path: Path, place: str) -> None:
    path = tmp_path / "a.journal"
    starts = [k for k in range(len(journal)) if journal.startswith(MARK, k)]
    damaged = bytearray(journal)
    at = {"mark": starts[3], "length": starts[3] + 10, "middle": starts[3] + 60, "zeros": starts[3]}[place]
    if place == "zeros":
        damaged[at : starts[4]] = bytes(starts[4] - at)
    else:
        damaged[at] ^= 0x40
    path.write_bytes(damaged)
    with pytest.raises(FormatError, match=rf"byte {starts[3]}; 3 records before it can be read"):
        Annotation(path, HW, empty_start)
    assert path.read_bytes() == damaged
    assert [*tmp_path.iterdir()] == [path]


def test_what_does_not_follow_from_the_records_before_is_refused(journal: bytes, tmp_path: Path) -> None:
    path = tmp_path / "a.journal"
    path.write_bytes(journal)
    journal_file = Journal(path)
    list(journal_file.read())
    journal_file.append({"kind": "undo", "rev": 6, "of": 2})
    journal_file.close()
    with pytest.raises(FormatError, match="makes no sense"):
        Annotation(path, HW, empty_start)


def test_an_edit_for_which_there_is_no_space_changes_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a.journal"
    annotation = Annotation(path, HW, empty_start)
    draw(annotation, 0)
    before = path.read_bytes()

    def full(_: int) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr(os, "fdatasync", full)
        with pytest.raises(OutputError, match="disk is full"):
            draw(annotation, 1)
    assert path.read_bytes() == before
    assert (len(annotation.table), annotation.rev) == (1, 1)
    assert np.unique(annotation.chunks.chunk(0, 0)).tolist() == [0, 1]
    draw(annotation, 2)
    annotation.close()
    assert n_objects(path) == (2, [])


# --- kills


class Server:
    """``cellwright serve`` as a process, with a client."""

    def __init__(self, source: Path, out: Path) -> None:
        command = [sys.executable, "-m", "cellwright", "serve", source, "--out", out, "--log-format", "json"]
        self.process = subprocess.Popen([*map(str, command)], stdout=subprocess.PIPE, text=True)
        assert self.process.stdout is not None
        url = next(event["url"] for event in map(json.loads, self.process.stdout) if "url" in event)
        self.host, _, query = url.removeprefix("http://").partition("/")
        self.cookie = ""
        self.cookie = self.get("/" + query, "GET")[1].split(";")[0]

    def get(self, path: str, method: str = "GET", body: Any = None) -> tuple[Any, str]:
        connection = HTTPConnection(self.host, timeout=20)
        headers = {"Cookie": self.cookie, "Origin": f"http://{self.host}", "Content-Type": "application/json"}
        try:
            connection.request(method, path, None if body is None else json.dumps(body), headers)
            answer = connection.getresponse()
            content = answer.read()
            assert answer.status < 400, content
            return json.loads(content) if content.startswith(b"{") else content, answer.getheader("set-cookie") or ""
        finally:
            connection.close()

    def kill(self) -> None:
        self.process.send_signal(signal.SIGKILL)
        self.process.wait()
        if self.process.stdout is not None:
            self.process.stdout.close()


FIRST = {"op": "draw", "outline": [[0, 0], [0, 3], [3, 3]]}  # what it needs is loaded then


def random_edit(rng: random.Random) -> dict[str, Any]:
    op = rng.choice(["draw", "draw", "brush", "erase", "undo", "redo", "ignore_region"])
    y, x = rng.uniform(0, 180), rng.uniform(0, 280)
    shape = [[y, x], [y, x + 15], [y + 15, x + 15], [y + 15, x]]
    fields = {"draw": {"outline": shape}, "ignore_region": {"outline": shape}}
    return {"op": op, **fields.get(op, {"path": shape, "radius": 4} if op in ("brush", "erase") else {})}


def kill_at_random_moments(tmp_path: Path, n_kills: int, seed: int) -> None:
    """Edit until the kill comes; afterwards the last state that was acknowledged is there, or one edit more."""
    cv2.imwrite(str(tmp_path / "a.png"), np.zeros(HW, np.uint8))
    rng, rev = random.Random(seed), 0
    for _ in range(n_kills):
        server = Server(tmp_path / "a.png", tmp_path / "project")
        assert server.get("/api/images/a")[0]["rev"] in (rev, rev + 1)
        rev = server.get("/api/images/a/edits", "POST", FIRST)[0]["rev"]
        delay = f"{rng.uniform(0.3, 1.3):.4f}"
        killer = subprocess.Popen(["sh", "-c", f"sleep {delay}; kill -9 {server.process.pid}"])
        labels: bytes | None = None
        try:
            while True:
                try:
                    rev = server.get("/api/images/a/edits", "POST", random_edit(rng))[0]["rev"]
                except AssertionError:  # there is nothing to undo
                    continue
                labels = None
                if rng.random() < 0.3:
                    labels = server.get("/api/images/a/labels/0/0/0")[0]
        except (OSError, HTTPException):
            killer.wait()
            server.kill()
        annotation = Annotation(tmp_path / "project" / "edits" / "a.journal", HW, empty_start)
        assert annotation.rev in (rev, rev + 1)
        if annotation.rev == rev and labels is not None:
            assert zlib.decompress(labels) == annotation.chunks.chunk(0, 0).astype("<u4").tobytes()
        annotation.close()
    assert rev > 3 * n_kills


def test_every_acknowledged_edit_survives_a_kill(tmp_path: Path) -> None:
    kill_at_random_moments(tmp_path, 1, 1)


@pytest.mark.slow
def test_every_acknowledged_edit_survives_fifty_kills(tmp_path: Path) -> None:
    kill_at_random_moments(tmp_path, 50, 2)
