"""Who may talk to the page, and what files it touches."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import cv2
import numpy as np
import pytest

pytest.importorskip("fastapi")
from drawn import run
from page_client import HOST, PageClient, open_page

PNG = cv2.imencode(".png", np.full((40, 50), 90, np.uint8))[1].tobytes()


@pytest.fixture
def client(tmp_path: Path) -> Iterator[PageClient]:
    (tmp_path / "images").mkdir()
    (tmp_path / "images" / "a.png").write_bytes(PNG)
    hosts = frozenset({"127.0.0.1", "lab.example"})
    with open_page(tmp_path / "images", tmp_path / "project", max_upload=100_000, hosts=hosts) as client:
        yield client


def test_nothing_is_answered_without_the_cookie_which_only_the_token_gives(client: PageClient) -> None:
    client.cookies.clear()
    for path in ("/", "/api/project", "/static/index.html", "/api/images/a/tiles/0/0/0"):
        assert client.get(path).status_code == 401
    assert client.post("/api/open", json={"path": "."}).status_code == 401
    assert client.get("/?token=wrong").status_code == 401
    assert client.get("/?token=", follow_redirects=False).status_code == 401
    assert client.get(f"/?token={client.access.token}").status_code == 401, "it is good once"
    (token,) = client.tokens
    answer = client.get(f"/?token={token}", follow_redirects=False)
    assert (answer.status_code, answer.headers["location"]) == (303, "/")
    cookie = answer.headers["set-cookie"]
    assert "HttpOnly" in cookie
    assert "SameSite=Strict" in cookie
    assert token not in cookie
    assert client.get("/api/project").status_code == 200
    assert client.get(f"/?token={token}").status_code == 200, "the same browser may open it again"


@pytest.mark.parametrize("host", ["evil.example:8765", "127.0.0.1:80", "127.0.0.1", "", "127.0.0.1:8765, evil:8765"])
def test_other_hosts_are_refused(client: PageClient, host: str) -> None:
    """DNS rebinding: a page of another site lets its name point to this machine."""
    assert client.get("/api/project", headers={"host": host}).status_code == 403


@pytest.mark.parametrize(
    "origin", ["http://evil.example", "null", "http://127.0.0.1:9999", "http://127.0.0.1:8765.evil"]
)
def test_other_origins_are_refused(client: PageClient, origin: str) -> None:
    edit = {"op": "draw", "outline": [[1, 1], [1, 9], [9, 9]]}
    assert client.post("/api/images/a/edits", json=edit, headers={"origin": origin}).status_code == 403
    assert client.get("/api/project", headers={"origin": origin}).status_code == 403
    assert client.get("/api/images/a/history").json() == {"undo": [], "redo": []}


def test_a_write_needs_an_origin_and_json_and_other_sites_start_nothing(client: PageClient) -> None:
    del client.headers["origin"]
    assert client.post("/api/open", json={"path": "."}).status_code == 403
    client.headers["origin"] = HOST
    assert client.post("/api/open", content='{"path": "."}', headers={"content-type": "text/plain"}).status_code == 415
    assert client.get("/api/project", headers={"sec-fetch-site": "cross-site"}).status_code == 403


def test_headers_of_every_answer(client: PageClient) -> None:
    for path in ("/", "/api/project", "/static/nothing.js", "/api/images/a/thumbnail", "/api/nothing"):
        headers = client.get(path).headers
        policy = headers["content-security-policy"]
        assert policy.startswith("default-src 'none'; script-src 'self'; style-src 'self';")
        assert "unsafe" not in policy
        assert "frame-ancestors 'none'" in policy
        assert (headers["x-content-type-options"], headers["referrer-policy"]) == ("nosniff", "no-referrer")
        assert not [name for name in headers if name.startswith("access-control")]
        assert headers["cross-origin-opener-policy"] == "same-origin"
    for address, is_sent in (("http://lab.example:8765/", False), ("https://lab.example:8765/", True)):
        assert ("cross-origin-opener-policy" in client.get(address).headers) == is_sent, address
    preflight = client.options("/api/project", headers={"access-control-request-method": "POST"})
    assert preflight.status_code in (405, 415)
    assert "access-control-allow-origin" not in preflight.headers


def test_only_paths_below_the_opened_folders_are_opened(client: PageClient, tmp_path: Path) -> None:
    (tmp_path / "secret").mkdir()
    (tmp_path / "secret" / "s.png").write_bytes(PNG)
    link = tmp_path / "images" / "link"
    link.symlink_to(tmp_path / "secret")
    (tmp_path / "images" / "s.png").symlink_to(tmp_path / "secret" / "s.png")
    for path in (
        "../secret",
        str(tmp_path / "secret"),
        str(link),
        "link",
        "s.png",
        "/etc",
        "~",
        "link/../../secret",
        "a\0b",
    ):
        answer = client.post("/api/open", json={"path": path})
        assert answer.status_code == 422, path
        assert "outside the folders that were opened" in answer.text or "no path" in answer.text
    for path in (
        "/static/../verb.py",
        "/static/%2e%2e/verb.py",
        "/static//etc/passwd",
        "/api/images/..%2f..%2fetc/history",
    ):
        assert client.get(path).status_code in (404, 405), path
    assert client.get("/api/project").json()["n_images"] == 1
    (tmp_path / "images" / "more").mkdir()
    (tmp_path / "images" / "more" / "b.png").write_bytes(PNG)
    (tmp_path / "images" / "more" / "linked.png").symlink_to(tmp_path / "secret" / "s.png")
    assert client.post("/api/open", json={"path": "more"}).json()["message"].startswith("1 new image; 1 image outside")


def upload(client: PageClient, name: str, content: bytes) -> int:
    return client.post("/api/upload", params={"name": name}, content=content).status_code


def test_an_upload_is_kept_in_the_project_whatever_its_name(client: PageClient, tmp_path: Path) -> None:
    kept = tmp_path / "project" / "images"
    names = ("x.png", "../../y.png", "/etc/z.png", "..\\..\\w.png", "<img src=x>.png", "x.png", "a" * 400 + ".png")
    assert [upload(client, name, PNG) for name in names] == [200] * len(names)
    stored = sorted(path.name for path in kept.iterdir())
    assert stored == sorted(["x.png", "y.png", "z.png", "w.png", "_img src=x_.png", "x-2.png", "a" * 120 + ".png"])
    assert {path.name for path in tmp_path.iterdir()} == {"images", "project"}
    images = client.get("/api/project").json()["images"]
    assert len(images) == 8
    assert all(not {*row["id"]} & {*"<>/\\ "} for row in images)


def test_what_is_no_image_or_too_large_is_refused_and_not_kept(client: PageClient, tmp_path: Path) -> None:
    assert upload(client, "a.html", PNG) == 422
    assert upload(client, "a.png", b"<script>") == 422
    assert upload(client, "..", PNG) == 422
    assert upload(client, "large.png", PNG + bytes(200_000)) == 413
    parts = iter([PNG, bytes(60_000), bytes(60_000)])  # without a length
    assert client.post("/api/upload", params={"name": "l.png"}, content=parts).status_code == 413
    header = bytearray(PNG)
    header[16:24] = (60_000).to_bytes(4, "big") * 2  # claims 60,000 x 60,000 pixels
    assert upload(client, "bomb.png", bytes(header)) == 422
    assert not [*(tmp_path / "project" / "images").iterdir()]
    assert client.get("/api/project").json()["n_images"] == 1
    huge = "x" * (17 << 20)
    answer = client.post("/api/open", content=huge, headers={"content-type": "application/json"})
    assert answer.status_code == 413


def test_other_machines_need_a_word(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("serve", "--host", "0.0.0.0", "--out", tmp_path / "p") == 2
    assert "--allow-remote" in capsys.readouterr().err
    assert not (tmp_path / "p").exists()
