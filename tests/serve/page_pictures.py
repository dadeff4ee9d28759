"""The pictures of docs/page.md, of drawn images: ``python tests/serve/page_pictures.py docs/images``."""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
from PIL import Image as Pillow

HERE = Path(__file__).parent
sys.path[:0] = map(str, (HERE.parents[1] / "src", HERE, HERE.parent / "cli"))

from browser import READY, Visitor, browser_or_skip, server, visit  # noqa: E402
from story import middle  # noqa: E402

from cellwright.data.synthetic import FieldLook, draw_field  # noqa: E402


def take(visitor: Visitor, folder: Path) -> Callable[[str], None]:
    """Returns a function that saves what the page shows as ``page_<name>.png``."""

    def save(name: str) -> None:
        visitor.page.wait_for_timeout(1200)
        path = folder / f"page_{name}.png"
        visitor.page.screenshot(path=path)
        picture = Pillow.open(path).convert("RGB").resize((960, 540), Pillow.Resampling.LANCZOS)
        picture = picture.quantize(256, Pillow.Quantize.MAXCOVERAGE, kmeans=2, dither=Pillow.Dither.NONE)
        picture.save(path, optimize=True)

    return save


def redraw(visitor: Visitor, truth: np.ndarray) -> None:
    """Delete the largest objects, and draw their true outlines."""
    numbers = sorted(np.unique(truth[30:-30, 80:-30])[1:].tolist(), key=lambda n: -int((truth == n).sum()))[:3]
    for number in numbers:
        mask = (truth == number).astype(np.uint8)
        visitor.press("x")
        visitor.click(middle(truth, number))
        (contour, *_), _ = cv2.findContours(mask, cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_NONE)
        points = [(float(y) + 0.5, float(x) + 0.5) for x, y in contour[::2, 0]]
        visitor.press("d")
        visitor.drag([*points, points[0]])


def main(folder: Path) -> None:
    """Go through the story of the page and save a picture of each step."""
    with tempfile.TemporaryDirectory() as temporary:
        paths = [Path(temporary) / f"field {k + 1}.png" for k in range(4)]
        stains = ("he", "fluorescence", "he", "fluorescence")
        looks = [FieldLook(stain, noise=0.004) for stain in stains]
        drawn = [draw_field(k + 7, (360, 480), 70, look) for k, look in enumerate(looks)]
        for path, (image, _) in zip(paths, drawn, strict=True):
            cv2.imwrite(str(path), image.data[:, :, ::-1])
        with server("--out", Path(temporary) / "my project") as link, visit(link, browser_or_skip()) as visitor:
            save = take(visitor, folder)
            visitor.drop(paths)
            visitor.until(READY)
            visitor.job("predict", "#predict-all", 200)
            visitor.until("cellwrightPage.objects.count")
            save("predict")
            redraw(visitor, drawn[0][1].to_label_map())
            visitor.press("r")
            visitor.drag([(270, 20), (270, 130), (340, 130), (340, 20), (271, 20)])
            visitor.press("b")
            row = visitor.objects()[-1]
            visitor.page.mouse.move(*visitor.place((row["y0"], (row["x0"] + row["x1"]) / 2)))
            save("correct")
            visitor.press("v", "Escape", ".", "q", "Alt+3")
            visitor.until("cellwrightPage.panels.train.candidates.length === 2")
            visitor.page.fill("#minutes", "0.7")
            visitor.job("train", "#train", 300)
            for _ in range(2):  # pictures are loaded once they are near
                visitor.page.evaluate("document.querySelector('#panel-train .outcome').scrollIntoView({block: 'end'})")
                visitor.page.wait_for_timeout(1200)
            save("train")
            visitor.press("Alt+5", "l", "c", "c")
            visitor.until("cellwrightPage.panels.measure.table")
            number = visitor.objects()[3]["id"]
            visitor.page.evaluate(f"cellwrightPage.objects.select([{number}])")
            save("measure")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
