"""Requests that make no sense, or almost do: no error of ours, no hang, and no file outside the project is changed."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any
from urllib.parse import quote

import cv2
import numpy as np
import pytest

pytest.importorskip("fastapi")
from page_client import PageClient, open_page

ODD: list[Any] = [
    *(None, True, 0, -1, 1, 2, 1.5, 1e308, -1e308, 2**31, 2**32, 2**63, 2**70, float("nan"), float("inf"), "NaN"),
    *("", "a", "../../etc", "\0", "é\ud800", "x" * 3000, [], {}, [[]], [[0, 0]], [1, 2, 3], {"a": 1}, [[0, 0]] * 50),
    [[1e9, 1e9], [0, 0], [5, 5]],
]
OPS = [
    *("delete", "delete_rect", "draw", "brush", "erase", "merge", "split", "fill_holes", "smooth", "set_class"),
    *("ignore_region", "unignore", "filter", "accept", "undo", "redo", "nothing"),
]
FIELDS = [
    *("rev", "ids", "id", "box", "shown_ids", "outline", "path", "line", "radius", "class", "index", "min_score"),
    *("min_area", "over", "shown", "client", "edit_id", "more"),
]
OF_IMAGE = ("objects", "tiles/{}/{}/{}", "labels/{}/{}/{}", "history", "thumbnail", "measurements")
PATHS = [
    *("/", "/api/project", "/api/images/a", "/api/images/{}", "/static/{}", "/{}", "/api/images/{}/objects"),
    *("/api/jobs", "/api/jobs/{}", "/api/exports/{}", "/api/evaluations/{}"),
    *(f"/api/images/{name}/{rest}" for name in "ab" for rest in OF_IMAGE),
]


def points(rng: random.Random) -> list[list[float]]:
    return [[rng.uniform(-20, 120), rng.uniform(-20, 150)] for _ in range(rng.randint(1, 8))]


def likely(rng: random.Random, name: str) -> Any:
    """A value that a field may have."""
    if name in ("outline", "path", "line"):
        return points(rng)
    if name in ("ids", "shown_ids"):
        return [rng.randint(1, 12) for _ in range(rng.randint(0, 4))]
    if name == "box":
        return [rng.uniform(-20, 120) for _ in range(4)]
    if name == "shown":
        return {"min_score": rng.random(), "min_area": rng.randint(0, 50)}
    values = {
        "radius": rng.uniform(0, 30),
        "class": rng.choice([0, 1, "cell"]),
        "min_score": rng.random(),
        "over": rng.random() < 0.5,
    }
    return values.get(name, rng.randint(0, 12))


def odd_body(rng: random.Random) -> bytes:
    if rng.random() < 0.1:
        return rng.choice(
            [b"", b"{", b"[" * 5000, b"\xff\xfe", b'{"op": "undo"', b"null", b'"a"', b"1" * 5000, bytes(100)]
        )
    body: dict[str, Any] = {"op": rng.choice(OPS) if rng.random() < 0.95 else rng.choice(ODD)}
    for name in FIELDS[:-1] if rng.random() < 0.9 else FIELDS:
        chance = rng.random()
        if name in ("rev", "client", "edit_id") and chance > 0.1:
            continue
        if chance < 0.7:
            body[name] = likely(rng, name)
        elif chance < 0.715:
            body[name] = rng.choice(ODD)
    try:
        return json.dumps(body).encode()
    except UnicodeEncodeError:
        return b"{}"


def odd_request(client: PageClient, rng: random.Random) -> Any:
    kind = rng.random()
    if kind < 0.6:
        path = rng.choice(["/api/images/a/edits"] * 9 + ["/api/images/x/edits"])
        return client.post(path, content=odd_body(rng), headers={"content-type": "application/json"})
    if kind < 0.7:
        path = rng.choice(["/api/open", "/api/classes", "/api/jobs", "/api/images/a/edits", "/api/project"])
        field = rng.choice(["path", "name", "verb", "parameters", "op"])
        content = json.dumps({field: rng.choice(ODD)}, ensure_ascii=True)
        return client.post(path, content=content, headers={"content-type": "application/json"})
    if kind < 0.75:
        name, content = (
            rng.choice(["a.png", "x.tif", "../y.png", "é.jpg", "", "n" * 900]),
            rng.randbytes(rng.randint(0, 300)),
        )
        return client.post("/api/upload", params={"name": name}, content=content)
    parts = [
        quote(str(rng.choice([0, 0, 1, 5, -1, "a", "..", "%00", 2**40, *ODD]))[:200].encode("utf-8", "replace"))
        for _ in range(3)
    ]
    query = rng.choice(
        [
            "",
            "?rev=1",
            "?rev=x",
            "?offset=-1",
            "?limit=999999",
            "?show=[]",
            "?show={",
            "?show=" + quote('[{"channel": 7}]'),
        ]
    )
    method = rng.choice(["GET"] * 8 + ["DELETE", "PUT", "PATCH", "HEAD"])
    return client.request(method, rng.choice(PATHS).format(*parts) + query)


def fuzz(tmp_path: Path, n: int, seed: int) -> None:
    source, rng = tmp_path / "source", random.Random(seed)
    source.mkdir()
    for name in "ab":
        labels = np.zeros((100, 130), np.uint16)
        for k in range(9):
            labels[5 + 30 * (k // 3) :, 5 + 40 * (k % 3) :][:20, :30] = k + 1
        cv2.imwrite(str(source / f"{name}.png"), (labels > 0).astype(np.uint8) * 100)
        cv2.imwrite(str(source / f"{name}_masks.png"), labels)
    before = {path: (path.read_bytes(), path.stat().st_mtime_ns) for path in source.iterdir()}
    with open_page(source, tmp_path / "project", max_upload=200) as client:
        counts: dict[int, int] = {}
        for k in range(n):
            answer = odd_request(client, rng)
            counts[answer.status_code] = counts.get(answer.status_code, 0) + 1
            assert answer.status_code < 500 or answer.status_code == 507, (k, answer.request.url, answer.text)
            if answer.status_code >= 400 and answer.request.method != "HEAD":
                assert answer.json()["error"]["message"], (k, answer.request.url)
        assert counts[200] > n // 25
    assert {path.name for path in tmp_path.iterdir()} == {"source", "project"}
    assert {path: (path.read_bytes(), path.stat().st_mtime_ns) for path in source.iterdir()} == before


def test_odd_requests_are_refused(tmp_path: Path) -> None:
    fuzz(tmp_path, 300, 1)


@pytest.mark.slow
def test_ten_thousand_odd_requests_are_refused(tmp_path: Path) -> None:
    fuzz(tmp_path, 10_000, 2)
