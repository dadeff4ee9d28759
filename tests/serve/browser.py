"""A person at the page of ``cellwright serve``: a server of its own process, and Chromium that works with the mouse."""

from __future__ import annotations

import base64
import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest

ROOT = Path(__file__).parents[2]
READY = "globalThis.cellwrightPage?.info && cellwrightPage.viewer.tiles?.tiles.size"
_LABELS = """async () => {
  const answer = await fetch(`/api/images/${cellwrightPage.info.id}/labels/0/0/0`, {cache: "no-store"});
  const bytes = new Uint8Array(await answer.arrayBuffer());
  let text = "";
  for (let i = 0; i < bytes.length; i += 4096) text += String.fromCharCode(...bytes.subarray(i, i + 4096));
  return btoa(text);
}"""
_AT_REST = """() => {
  const {viewport, container} = cellwrightPage.viewer.osd, size = viewport.getContainerSize();
  const now = viewport.getCenter(true), then = viewport.getCenter(false);
  const moves = Math.hypot(now.x - then.x, now.y - then.y) + Math.abs(viewport.getZoom(true) - viewport.getZoom(false));
  return moves < 1e-9 && size.x === container.clientWidth && size.y === container.clientHeight;
}"""
# How long something may take on a busy machine before the test fails.
_PATIENCE_S = 90
Point = tuple[float, float]


def browser_or_skip() -> str:
    """The path of Chromium; skips the test where it, or what drives it, is missing."""
    pytest.importorskip("fastapi", reason="the page needs the extra serve")
    pytest.importorskip("playwright", reason="playwright is not installed")
    path = shutil.which("chromium") or shutil.which("chromium-browser")
    if path is None:
        pytest.skip("no chromium: ./dev browser installs it")
    return path


@contextmanager
def server(*words: object) -> Iterator[str]:
    """``cellwright serve words...``; yields the link that it prints."""
    command = [sys.executable, "-m", "cellwright", "serve", *map(str, words)]
    environment = os.environ | {"PYTHONPATH": str(ROOT / "src"), "OMP_NUM_THREADS": "1", "PYTHONUNBUFFERED": "1"}
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=environment)
    try:
        printed: list[str] = []
        assert process.stdout is not None
        for line in process.stdout:
            printed.append(line)
            link = re.search(r"http://\S+token=\S+", line)
            if link:
                yield link.group()
                break
        else:
            raise AssertionError("".join(printed))
    finally:
        process.terminate()
        process.communicate(timeout=60)


class Visitor:
    """Someone at the page. problems: errors of scripts, and what the content-security policy refused."""

    def __init__(self, page: Any) -> None:
        self.page = page
        self.chrome = page.context.new_cdp_session(page)
        self.problems: list[str] = []
        page.on("pageerror", lambda error: self.problems.append(str(error)))
        page.on("console", lambda said: self.problems.append(said.text) if said.type == "error" else None)

    def look(self, expression: str) -> Any:
        """The value of an expression in the page."""
        return self.page.evaluate(expression)

    def until(self, expression: str, seconds: float = _PATIENCE_S) -> None:
        """Wait until something is true. (Playwright's own function needs `eval`, which the page does not allow.)"""
        end = time.monotonic() + seconds
        while not self.page.evaluate(f"Boolean({expression})"):
            assert time.monotonic() < end, (expression, self.problems, self.page.inner_text("#toasts"))
            self.page.wait_for_timeout(20)

    def saved(self) -> None:
        """Wait until all edits are answered and drawn, and the labels are here that a click needs."""
        self.until(
            "!cellwrightPage.opening && !cellwrightPage.editor.pending && !cellwrightPage.viewer.dirty"
            " && !cellwrightPage.viewer.tiles?.waiting.size && !cellwrightPage.viewer.tiles?.queue.length"
        )

    def drop(self, paths: Sequence[Path]) -> None:
        """Drop files or folders onto the page, as they come from the desktop."""
        carried = {"items": [], "files": list(map(str, paths)), "dragOperationsMask": 1}
        for kind in ("dragEnter", "dragOver", "drop"):
            self.chrome.send("Input.dispatchDragEvent", {"type": kind, "x": 400, "y": 300, "data": carried})

    def touch(self, *moments: Sequence[Point]) -> None:
        """Put fingers (x, y) on the window, move them from moment to moment, and lift them all."""
        n = 0
        for fingers in moments:
            kind = "touchMove" if len(fingers) == n else "touchStart"
            points = [{"x": x, "y": y, "id": k} for k, (x, y) in enumerate(fingers)]
            self.chrome.send("Input.dispatchTouchEvent", {"type": kind, "touchPoints": points})
            n = len(fingers)
        self.chrome.send("Input.dispatchTouchEvent", {"type": "touchEnd", "touchPoints": []})
        self.saved()

    def at_rest(self) -> None:
        """Wait until the picture is where it moves to, and has the size that panels beside it leave."""
        self.until(f"({_AT_REST})()")

    def place(self, point: Point) -> Point:
        """Where a pixel (y, x) of the image is in the window (x, y), once the picture rests."""
        self.at_rest()
        y, x = point
        left, top = self.look("(({left, top}) => [left, top])(cellwrightPage.viewer.host.getBoundingClientRect())")
        dx, dy = self.look(f"cellwrightPage.viewer.screenOf([{y}, {x}])")
        return left + dx, top + dy

    def click(self, point: Point) -> None:
        """Click a pixel (y, x) of the image, which is in sight."""
        x, y = self.place(point)
        on = self.look(f"document.elementFromPoint({x}, {y})?.closest('.openseadragon-canvas') !== null")
        assert on, (point, x, y)
        self.page.mouse.click(x, y)
        self.saved()

    def drag(self, points: Sequence[Point]) -> None:
        """Drag over pixels (y, x) of the image."""
        self.page.mouse.move(*self.place(points[0]))
        self.page.mouse.down()
        for point in points[1:]:
            self.page.mouse.move(*self.place(point), steps=4)
        self.page.mouse.up()
        self.saved()

    def press(self, *keys: str) -> None:
        """Press keys, one after the other."""
        for key in keys:
            self.page.keyboard.press(key)
            self.saved()

    def labels(self) -> np.ndarray:
        """The label image (H, W) of the open image; at most one tile."""
        height, width = self.look("cellwrightPage.info.hw")
        pixels = base64.b64decode(self.look(f"({_LABELS})()"))
        return np.frombuffer(pixels, "<u4").reshape(height, width).copy()

    def drawn(self) -> str:
        """The pixels of the label layer on the screen."""
        return self.look("cellwrightPage.viewer.labels.toDataURL()")

    def objects(self) -> list[dict[str, Any]]:
        """The rows of the objects that are shown."""
        return self.look("cellwrightPage.objects.shown().map((id) => cellwrightPage.objects.row(id))")

    def job(self, verb: str, button: str, seconds: float = 2 * _PATIENCE_S) -> dict[str, Any]:
        """Press a button that starts a job, and wait for its end."""
        before = self.look(f"cellwrightPage.jobs.latest('{verb}')?.id ?? ''")
        self.page.click(button)
        latest = f"cellwrightPage.jobs.latest('{verb}')"
        self.until(
            f"({latest}?.id ?? '') !== '{before}' && ['done', 'failed', 'cancelled'].includes({latest}.state)", seconds
        )
        job = self.look(latest)
        assert job["state"] == "done", job
        return job


@contextmanager
def visit(link: str, chromium: str, width: int = 1280, height: int = 720) -> Iterator[Visitor]:
    """Open a link of `server`."""
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        try:
            context = browser.new_context(viewport={"width": width, "height": height})
            context.set_default_timeout(1000 * _PATIENCE_S)
            visitor = Visitor(context.new_page())
            visitor.page.goto(link)
            visitor.until("globalThis.cellwrightPage?.project")
            yield visitor
        finally:
            browser.close()
