"""The page in Chromium: how soon a stroke is seen, and how smoothly the picture moves.

    python benchmarks/page_browser.py FOLDER [--side 4096] [--strokes 40]

FOLDER is written to: a drawn image with its labels (as in page.py), and the project. A stroke is timed in the browser,
from the release of the mouse until the label layer has been drawn with the answer of the server, while all objects are
visible; a movement by the times between the frames that Chromium shows while the picture is dragged.
"""

from __future__ import annotations

import argparse
import random
import shutil
import sys
import time
from pathlib import Path

import numpy as np

from page import draw

sys.path.insert(0, str(Path(__file__).parents[1] / "tests" / "serve"))
from browser import READY, Visitor, browser_or_skip, server, visit

_TIME_STROKES = """() => {
  const {viewer, editor} = cellwrightPage, apply = editor.apply.bind(editor), frame = viewer.frame.bind(viewer);
  let released = 0, answered = false;
  globalThis.strokes = [];
  document.addEventListener("pointerup", (event) => { released = event.timeStamp; }, {capture: true});
  editor.apply = (answer) => { answered = true; return apply(answer); };
  viewer.frame = () => {
    const changed = answered && viewer.dirty;
    frame();
    if (changed) { strokes.push(performance.now() - released); answered = false; }
  };
}"""
_TIME_FRAMES = """() => {
  let last = performance.now();
  globalThis.frames = [];
  globalThis.moving = true;
  const next = (now) => { frames.push(now - last); last = now; if (globalThis.moving) requestAnimationFrame(next); };
  requestAnimationFrame(next);
}"""
_ZOOM = "zoom => cellwrightPage.viewer.osd.viewport.zoomTo("
_ZOOM += "cellwrightPage.viewer.osd.viewport.imageToViewportZoom(zoom), null, true)"
_COMPLETE = "cellwrightPage.viewer.osd.world.getItemAt(0).getFullyLoaded() && !cellwrightPage.viewer.tiles.waiting.size"


def strokes(visitor: Visitor, n: int) -> list[float]:
    """Milliseconds of strokes with the brush, at random places of the whole image."""
    rng, mouse = random.Random(0), visitor.page.mouse
    visitor.press("0", "b")
    visitor.page.evaluate(_TIME_STROKES)
    for _ in range(n):
        x, y = rng.uniform(420, 800), rng.uniform(150, 600)
        mouse.move(x, y)
        mouse.down()
        mouse.move(x + 20, y + 12, steps=8)
        mouse.up()
        visitor.saved()
        visitor.page.wait_for_timeout(100)
    return visitor.look("strokes")


def frames(visitor: Visitor, zoom: float) -> list[float]:
    """Milliseconds between the frames while the picture is dragged."""
    visitor.press("0", "v")
    visitor.page.evaluate(_ZOOM, zoom)
    visitor.page.wait_for_timeout(300)
    visitor.until(_COMPLETE)
    visitor.page.evaluate(_TIME_FRAMES)
    visitor.page.mouse.move(750, 500)
    visitor.page.mouse.down()
    for k in range(60):
        visitor.page.mouse.move(750 - 5 * k, 500 - 3 * k)
        visitor.page.wait_for_timeout(14)
    visitor.page.mouse.up()
    visitor.page.evaluate("globalThis.moving = false")
    return visitor.look("frames")[1:]


def shown(name: str, ms: list[float]) -> str:
    return f"{name}: {len(ms)}, median {np.median(ms):.1f} ms, p95 {np.percentile(ms, 95):.1f} ms, max {max(ms):.0f} ms"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--side", type=int, default=4096)
    parser.add_argument("--strokes", type=int, default=40)
    args = parser.parse_args()
    images, project = args.folder / f"images_{args.side}", args.folder / "project"
    if not images.is_dir():
        draw(images, args.side)
    shutil.rmtree(project, ignore_errors=True)
    with server(images, "--out", project) as link, visit(link, browser_or_skip()) as visitor:
        begun = time.monotonic()
        visitor.until(READY, 300)
        objects = visitor.look("cellwrightPage.objects.count")
        print(f"{args.side} x {args.side} px with {objects:,} objects, seen after {time.monotonic() - begun:.1f} s")
        visitor.until(_COMPLETE)
        print(shown("strokes", strokes(visitor, args.strokes)))
        for zoom in (600 / args.side, 0.25, 1):
            print(shown(f"frames at {100 * zoom:.0f} %", frames(visitor, zoom)))


if __name__ == "__main__":
    main()
