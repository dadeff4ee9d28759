"""The evaluation against other tools: COCO results from files to metrics, and metrics of label images.

    python benchmarks/evaluate.py [--python NAME=PATH ...] [--repeat 3] [--out work/bench/evaluate.json]

COCO: 50 images of 1000 x 1000 with 400 annotated and 500 predicted masks each, AP with at most 100 and with all
detections, against pycocotools, faster-coco-eval and hotcoco. Label images: 2048 x 2048 with 9,000 cells, against
`stardist.matching` and `cellpose.metrics`. Every tool runs in its own process; ``--python`` gives the interpreter of a
tool in another environment. "seconds" is the median of the repeats; "first" is the first call of the process, which
loads libraries and compiled kernels (cached on disk). A tool that is not installed is listed with the reason.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib
import io
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

IMAGES, SIDE, TRUE, PREDICTED = 50, 1000, 400, 500
LABEL_SIDE, CELLS = 2048, 9000
THRESHOLDS = [round(0.5 + 0.05 * k, 2) for k in range(10)]
TOOLS = {
    "COCO AP": ("cellwright", "hotcoco", "faster_coco_eval", "pycocotools"),
    "label images": ("cellwright", "stardist", "cellpose"),
}


def write_coco(folder: Path) -> None:
    """``truth.json`` and ``results.json``: discs of 6 to 15 px radius; predictions are moved, repeated or random."""
    from cellwright.core.masks import MaskSet

    rng = np.random.default_rng(0)
    truth: dict[str, Any] = {"images": [], "categories": [{"id": 1, "name": "cell"}], "annotations": []}
    results = []
    for image_id in range(1, IMAGES + 1):
        truth["images"].append({"id": image_id, "file_name": f"{image_id}.png", "height": SIDE, "width": SIDE})
        centres, radii = rng.uniform(0, SIDE, (TRUE, 2)), rng.uniform(6, 15, TRUE)
        of = rng.integers(0, TRUE, PREDICTED)
        moved = centres[of] + rng.normal(0, 2, (PREDICTED, 2))
        moved[rng.random(PREDICTED) < 0.1] = rng.uniform(0, SIDE, 2)
        for shapes, records in (((centres, radii), truth["annotations"]), ((moved, radii[of]), results)):
            masks = discs(MaskSet, *shapes)
            for rle, box, area in zip(masks.to_rle(), masks.boxes.tolist(), masks.areas.tolist(), strict=True):
                record = {"image_id": image_id, "category_id": 1, "segmentation": rle}
                if records is results:
                    record["score"] = round(float(rng.random()), 5)
                else:
                    x0, y0, x1, y1 = box
                    record |= {"id": len(records) + 1, "iscrowd": 0, "area": area, "bbox": [x0, y0, x1 - x0, y1 - y0]}
                records.append(record)
    (folder / "truth.json").write_text(json.dumps(truth))
    (folder / "results.json").write_text(json.dumps(results))


def discs(mask_set: Any, centres: np.ndarray, radii: np.ndarray) -> Any:
    """A `MaskSet` of discs, clipped at the image border."""
    boxes, crops = [], []
    for (cy, cx), radius in zip(centres, radii, strict=True):
        y0, x0 = (int(np.clip(c - radius, 0, SIDE - 2)) for c in (cy, cx))
        y1, x1 = (int(np.clip(c + radius + 1, low + 1, SIDE)) for c, low in ((cy, y0), (cx, x0)))
        y, x = np.ogrid[y0:y1, x0:x1]
        boxes.append((x0, y0, x1, y1))
        crops.append((y + 0.5 - cy) ** 2 + (x + 0.5 - cx) ** 2 <= radius**2)
    return mask_set.from_crops(np.array(boxes), crops, (SIDE, SIDE))


def write_labels(folder: Path) -> None:
    """``truth.npy`` and ``predicted.npy``: cells on a jittered grid; the predicted ones are moved by a pixel or two."""
    rng = np.random.default_rng(1)
    side = int(np.ceil(np.sqrt(CELLS)))
    pitch = LABEL_SIDE / side
    for name, shift in (("truth", 0.0), ("predicted", 1.5)):
        labels = np.zeros((LABEL_SIDE, LABEL_SIDE), np.int32)
        for k in range(CELLS):
            row, column = divmod(k, side)
            cy, cx = ((at + 0.5) * pitch + shift * rng.random() for at in (row, column))
            radius = pitch * (0.38 + 0.1 * rng.random())
            y0, x0 = (int(max(c - radius, 0)) for c in (cy, cx))
            window = labels[y0 : int(cy + radius + 1), x0 : int(cx + radius + 1)]
            y, x = np.ogrid[y0 : y0 + window.shape[0], x0 : x0 + window.shape[1]]
            window[(y - cy) ** 2 + (x - cx) ** 2 <= radius**2] = k + 1
        np.save(folder / f"{name}.npy", labels)


def coco_cellwright(folder: Path) -> Callable[[], list[float]]:
    from cellwright.data.formats import ReadOptions, read_dataset
    from cellwright.evaluation.evaluate import evaluate_pairs

    def run() -> list[float]:
        truth = read_dataset(folder / "truth.json", ReadOptions(require_images=False))
        predicted = read_dataset(folder / "results.json", ReadOptions(images=truth, require_images=False))
        pairs = [(p.read_instances(), t.read_instances()) for p, t in zip(predicted, truth, strict=True)]
        report = evaluate_pairs([p for p, _ in pairs], [t for _, t in pairs], metrics=["coco_ap"])
        return [report["AP@100"], report["AP@all"]]

    return run


def coco_interface(module: str) -> tuple[Any, Any]:
    """The classes COCO and COCOeval of a package."""
    if module == "pycocotools":
        from pycocotools.coco import COCO
        from pycocotools.cocoeval import COCOeval

        return COCO, COCOeval
    package = importlib.import_module(module)
    return package.COCO, package.COCOeval_faster if module == "faster_coco_eval" else package.COCOeval


def coco_peer(module: str) -> Callable[[Path], Callable[[], list[float]]]:
    """pycocotools, or one of the two packages with the same interface."""

    def make(folder: Path) -> Callable[[], list[float]]:
        coco, evaluator = coco_interface(module)

        def run() -> list[float]:
            with contextlib.redirect_stdout(io.StringIO()):
                truth = coco(str(folder / "truth.json"))
                evaluation = evaluator(truth, truth.loadRes(str(folder / "results.json")), "segm")
                evaluation.params.maxDets = [1, 100, PREDICTED]
                evaluation.evaluate()
                evaluation.accumulate()
            precision = np.asarray(evaluation.eval["precision"])
            return [float(precision[:, :, :, 0, m].mean()) for m in (1, 2)]

        return run

    return make


def labels_cellwright(folder: Path) -> Callable[[], list[float]]:
    from cellwright.core.instances import Instances
    from cellwright.core.masks import MaskSet
    from cellwright.evaluation.evaluate import evaluate_pairs

    truth, predicted = np.load(folder / "truth.npy"), np.load(folder / "predicted.npy")

    def run() -> list[float]:
        sides = [Instances.from_masks(MaskSet.from_label_map(labels)[0]) for labels in (predicted, truth)]
        report = evaluate_pairs(sides[:1], sides[1:], metrics=["accuracy", "pq", "aji"])
        return [report["accuracy@0.5"], report["accuracy@0.75"], report["aji_cellpose"]]

    return run


def labels_stardist(folder: Path) -> Callable[[], list[float]]:
    from stardist.matching import matching

    truth, predicted = np.load(folder / "truth.npy"), np.load(folder / "predicted.npy")

    def run() -> list[float]:
        results = matching(truth, predicted, thresh=tuple(THRESHOLDS))
        return [results[0].accuracy, results[5].accuracy]

    return run


def labels_cellpose(folder: Path) -> Callable[[], list[float]]:
    from cellpose.metrics import aggregated_jaccard_index, average_precision

    truth, predicted = np.load(folder / "truth.npy"), np.load(folder / "predicted.npy")

    def run() -> list[float]:
        ap = average_precision([truth], [predicted], threshold=THRESHOLDS)[0][0]
        return [float(ap[0]), float(ap[5]), float(aggregated_jaccard_index([truth], [predicted])[0])]

    return run


MAKERS: dict[tuple[str, str], Callable[[Path], Callable[[], list[float]]]] = {
    ("COCO AP", "cellwright"): coco_cellwright,
    **{("COCO AP", name): coco_peer(name) for name in TOOLS["COCO AP"][1:]},
    ("label images", "cellwright"): labels_cellwright,
    ("label images", "stardist"): labels_stardist,
    ("label images", "cellpose"): labels_cellpose,
}


def measure(case: str, name: str, folder: Path, repeat: int) -> dict[str, Any]:
    """The time of one tool in this process, seconds, and its metrics."""
    start = time.perf_counter()
    run = MAKERS[case, name](folder)
    metrics = run()
    seconds = [time.perf_counter() - start]
    while len(seconds) < repeat and sum(seconds) < 60:
        start = time.perf_counter()
        run()
        seconds.append(time.perf_counter() - start)
    return {"seconds": statistics.median(seconds[1:] or seconds), "first": seconds[0], "metrics": metrics}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--python", action="append", default=[], metavar="NAME=PATH", help="interpreter of a tool")
    parser.add_argument("--repeat", type=int, default=4)
    parser.add_argument("--out", type=Path, default=Path("work/bench/evaluate.json"))
    parser.add_argument("--case", nargs=3, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.case:
        case, name, folder = args.case
        print(json.dumps(measure(case, name, Path(folder), args.repeat)))
        return
    interpreters = dict(pair.split("=", 1) for pair in args.python)
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        write_coco(Path(folder))
        write_labels(Path(folder))
        for case, names in TOOLS.items():
            for name in names:
                rows.append({"case": case, "method": name, **_outcome(case, name, folder, interpreters, args.repeat)})
                print(_line(rows[-1]), flush=True)
    args.out.parent.mkdir(parents=True, exist_ok=True)
    args.out.write_text(json.dumps({"rows": rows}, indent=1) + "\n")


def _outcome(case: str, name: str, folder: str, interpreters: dict[str, str], repeat: int) -> dict[str, Any]:
    python = interpreters.get(name, sys.executable)
    command = [python, __file__, "--repeat", str(repeat), "--case", case, name, folder]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        return {"absent": (done.stderr.strip().splitlines() or ["no message"])[-1]}
    return json.loads(done.stdout.splitlines()[-1])


def _line(row: dict[str, Any]) -> str:
    head = f"| {row['case']} | {row['method']} | "
    if "absent" in row:
        return head + f"{row['absent']} |"
    metrics = " ".join(f"{value:.6f}" for value in row["metrics"])
    return head + f"{row['seconds']:.2f} s | {row['first']:.2f} s | {metrics} |"


if __name__ == "__main__":
    main()
