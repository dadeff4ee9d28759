"""100 to 20,000 objects in one image: CPU time and memory of what is done with them, and how fast both grow.

    python benchmarks/crowd.py [--counts 100 316 1000 3162 10000 20000] [--python supervision=PATH] [--limit 60]

Drawn nuclei, 1,000 per Mpx. In the first series the image grows with their number; in the second it has the size that
the largest number needs, and smaller numbers are part of the same objects. Predictions are the same objects, each
moved by up to 2 px, with random scores. "decode" starts from flow maps of the drawn nuclei with noise, "predict" from
the image, with `nuclei` and a given diameter. The other tools start from what they take: RLE in memory, boxes, a label
image.

Each number is a process of its own with one thread, forked after a run with a few objects: the shortest CPU time of up
to 3 runs, and the peak memory above that before the first one. The exponent p of n^p is a fit by least squares of the
logarithms over the last four numbers that were measured. A tool is stopped where it would take more than ``--limit``
seconds or ``--memory`` MB if both grew with the square. ``--python`` names the interpreter of a tool in another
environment; a tool that is not installed is listed.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import math
import multiprocessing
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from tables import markdown, processor, reset_peak, status_mb

COUNTS = (100, 316, 1000, 3162, 10000, 20000)
PER_MPX, DIAMETER_PX = 1000, 24.0  # the bundled networks see nuclei at 24 px, so that no image is resized
MODEL = "nuclei-fluorescence"
FITTED = 4
LEAST_MB = 2.0  # a smaller peak says nothing about its growth
FORK = multiprocessing.get_context("fork")
THREADED = ("predict",)  # a process with OpenVINO's threads cannot be forked
Run = Callable[[], object]


# --- scenes -----------------------------------------------------------------------------------------------------------


def write_scene(folder: Path, n: int) -> int:
    """Draw about ``n`` objects; returns how many found a place."""
    from cellwright.data.synthetic import FieldLook, draw_field

    side, look = math.ceil(math.sqrt(n / PER_MPX * 1e6)), FieldLook("fluorescence", DIAMETER_PX, overlap=0.0)
    image, objects = draw_field(0, (side, side), n, look)
    _write(folder, image.data, objects.masks)
    return len(objects)


def write_part(folder: Path, whole: Path, n: int) -> int:
    """``n`` of the objects of another scene, in its image."""
    masks, image = read_masks(whole), np.load(whole / "image.npy")
    chosen = np.sort(np.random.default_rng(0).permutation(len(masks))[:n])
    _write(folder, image, masks[chosen])
    return len(chosen)


def _write(folder: Path, image: np.ndarray, masks: Any) -> None:
    """The files of a scene: for us, and COCO records and boxes for the others."""
    folder.mkdir()
    np.save(folder / "image.npy", image)
    np.savez(folder / "masks.npz", boxes=masks.boxes, packed=masks.pack(), hw=image.shape[:2])
    truth = [_record(k, rle, box) for k, (rle, box) in enumerate(zip(masks.to_rle(), masks.boxes, strict=True), 1)]
    results = []
    for predicted in (moved(masks, 1), moved(masks, 2)):
        records = zip(predicted.masks.to_rle(), predicted.boxes_xyxy, predicted.scores.tolist(), strict=True)
        results.append([_record(k, rle, box) | {"score": score} for k, (rle, box, score) in enumerate(records, 1)])
    (folder / "coco.json").write_text(json.dumps({"hw": image.shape[:2], "truth": truth, "results": results}))


def _record(number: int, rle: dict[str, Any], box: np.ndarray) -> dict[str, Any]:
    x0, y0, x1, y1 = map(int, box)
    own = {"id": number, "image_id": 1, "category_id": 1, "segmentation": rle, "iscrowd": 0}
    return own | {"bbox": [x0, y0, x1 - x0, y1 - y0], "area": (x1 - x0) * (y1 - y0)}


def read_masks(folder: Path) -> Any:
    """The drawn objects."""
    from cellwright.core.masks import MaskSet

    stored = np.load(folder / "masks.npz")
    return MaskSet.unpack(tuple(stored["hw"].tolist()), stored["boxes"], stored["packed"])


def moved(masks: Any, seed: int) -> Any:
    """`Instances` with scores: each object moved by up to 2 px, where it stays in the image."""
    from cellwright.core.instances import Instances
    from cellwright.core.masks import MaskSet

    rng, (height, width) = np.random.default_rng(seed), masks.image_hw
    boxes = masks.boxes + np.tile(rng.integers(-2, 3, (len(masks), 2)), 2).astype(np.int32)
    inside = (boxes[:, :2].min(1) >= 0) & (boxes[:, 2] <= width) & (boxes[:, 3] <= height)
    boxes = np.where(inside[:, None], boxes, masks.boxes)
    placed = MaskSet.from_flat(masks.image_hw, boxes, masks.offsets, masks.crops)
    return Instances.from_masks(placed, scores=rng.random(len(masks)).astype(np.float32))


# --- what is done with them -------------------------------------------------------------------------------------------


def predict(folder: Path) -> Run:
    import cellwright as cw

    model, image = cw.load_model("nuclei", device="cpu"), np.load(folder / "image.npy")
    return lambda: model.predict(image, DIAMETER_PX)


def decode(folder: Path) -> Run:
    from cellwright.models.dense.flow import encode
    from cellwright.prediction.backends.load import load_predictor
    from decoders import noisy_flow

    network = load_predictor(MODEL, backend="openvino")[0].network
    maps = noisy_flow(encode(read_masks(folder).to_label_map().astype(np.int32)))
    return lambda: network.decode(maps)


def evaluate(metrics: Sequence[str]) -> Callable[[Path], Run]:
    def make(folder: Path) -> Run:
        import cellwright as cw
        from cellwright.core.instances import Instances

        masks = read_masks(folder)
        truth, predicted = Instances.from_masks(masks), moved(masks, 1)
        return lambda: cw.evaluate([predicted], [truth], metrics=metrics)

    return make


def evaluate_coco(module: str) -> Callable[[Path], Run]:
    """pycocotools, or a package with the same interface: masks, all detections."""

    def make(folder: Path) -> Run:
        from evaluate import coco_interface

        coco, evaluator = coco_interface(module)
        stored = json.loads((folder / "coco.json").read_text())
        height, width = stored["hw"]
        images = [{"id": 1, "file_name": "1.png", "height": height, "width": width}]
        categories = [{"id": 1, "name": "cell"}]
        content = {"info": {}, "images": images, "categories": categories, "annotations": stored["truth"]}

        def run() -> object:
            with contextlib.redirect_stdout(io.StringIO()):
                truth = coco()
                truth.dataset = content
                truth.createIndex()
                evaluation = evaluator(truth, truth.loadRes(stored["results"][0]), "segm")
                evaluation.params.maxDets = [1, 100, len(stored["truth"])]
                evaluation.evaluate()
                evaluation.accumulate()
            return evaluation

        return run

    return make


def fuse(method: str) -> Callable[[Path], Run]:
    def make(folder: Path) -> Run:
        import cellwright as cw

        masks = read_masks(folder)
        members = [moved(masks, seed) for seed in (1, 2)]
        return lambda: cw.fuse(members, method=method)

    return make


def _boxes_scores(folder: Path) -> tuple[np.ndarray, np.ndarray]:
    """Boxes (2 N, 4) and scores (2 N,) float32 of both sets of predictions."""
    first, second = json.loads((folder / "coco.json").read_text())["results"]
    records = [*first, *second]
    x0, y0, width, height = np.array([record["bbox"] for record in records], np.float32).T
    boxes = np.stack([x0, y0, x0 + width, y0 + height], axis=1)
    return boxes, np.array([record["score"] for record in records], np.float32)


def nms_torchvision(folder: Path) -> Run:
    import torch
    from torchvision.ops import nms

    torch.set_num_threads(1)
    boxes, scores = (torch.from_numpy(values) for values in _boxes_scores(folder))
    return lambda: nms(boxes, scores, 0.5)


def nms_supervision(folder: Path) -> Run:
    import supervision  # type: ignore[import-not-found]

    boxes, scores = _boxes_scores(folder)
    detections = supervision.Detections(xyxy=boxes, confidence=scores, class_id=np.zeros(len(boxes), int))
    return lambda: detections.with_nms(threshold=0.5)


def measure(folder: Path) -> Run:
    import cellwright as cw
    from cellwright.core.instances import Instances

    cells, image = Instances.from_masks(read_masks(folder)), cw.Image(np.load(folder / "image.npy"), ("DAPI",))
    return lambda: cw.measure(cells, image)


def measure_skimage(folder: Path) -> Run:
    from skimage.measure import regionprops_table

    from measure import PLACE, SHAPE, VALUES

    labels, image = read_masks(folder).to_label_map().astype(np.int32), np.load(folder / "image.npy")
    return lambda: regionprops_table(labels, image, properties=("label", *SHAPE, *PLACE, *VALUES))


def export(name: str) -> Callable[[Path], Run]:
    def make(folder: Path) -> Run:
        import cellwright as cw
        from cellwright.core.instances import Instances

        cells = Instances.from_masks(read_masks(folder))
        return lambda: cw.save(cells, folder / name)

    return make


def export_pycocotools(folder: Path) -> Run:
    """RLE of one full-size mask at a time, from a label image."""
    from pycocotools import mask as coco_mask

    labels = np.asfortranarray(read_masks(folder).to_label_map())

    def run() -> object:
        rles = [coco_mask.encode((labels == k).view(np.uint8)) for k in range(1, int(labels.max()) + 1)]
        records = [{"image_id": 1, "segmentation": {**rle, "counts": rle["counts"].decode()}} for rle in rles]
        return (folder / "theirs.json").write_text(json.dumps(records))

    return run


CASES: dict[str, dict[str, Callable[[Path], Run]]] = {
    "predict": {"cellwright": predict},
    "decode": {"cellwright": decode},
    "evaluate, AP of masks": {
        "cellwright": evaluate(["coco_ap"]),
        "faster-coco-eval": evaluate_coco("faster_coco_eval"),
        "pycocotools": evaluate_coco("pycocotools"),
    },
    "evaluate, accuracy, PQ, AJI": {"cellwright": evaluate(["accuracy", "pq", "aji"])},
    "fuse, wbf": {"cellwright": fuse("wbf")},
    "fuse, mask_vote": {"cellwright": fuse("mask_vote")},
    "fuse, nms": {"cellwright": fuse("nms"), "torchvision": nms_torchvision, "supervision": nms_supervision},
    "measure": {"cellwright": measure, "scikit-image": measure_skimage},
    "export, COCO": {"cellwright": export("ours.json"), "pycocotools": export_pycocotools},
    "export, GeoJSON": {"cellwright": export("ours.geojson")},
    "export, ImageJ ROIs": {"cellwright": export("ours.zip")},
}


# --- measuring --------------------------------------------------------------------------------------------------------


def measured(case: str, tool: str, scenes: Sequence[str], args: argparse.Namespace) -> dict[str, Any]:
    """What one tool needs for each scene: a folder, and the number of objects there."""
    at: dict[str, Any] = {}
    if case not in THREADED:
        warm_up(case, tool, Path(scenes[0]))  # once for all; again in each child, which costs little then
    last, facts = 0, {"seconds": 0.0, "peak_mb": 0.0}
    for folder, n in zip(scenes[::2], map(int, scenes[1::2]), strict=True):
        growth = (n / last) ** 2 if last else 0.0
        too_long, too_large = facts["seconds"] * growth > args.limit, facts["peak_mb"] * growth > args.memory
        if tool != "cellwright" and (too_long or too_large):
            break
        receiver, sender = FORK.Pipe(duplex=False)
        child = FORK.Process(target=in_child, args=(sender, case, tool, Path(folder), args.repeat))
        child.start()
        sender.close()
        facts = receiver.recv() | {"n": n}  # EOFError if the child has failed
        child.join()
        at[Path(folder).name], last = facts, n
    return {"case": case, "tool": tool, "at": at}


def warm_up(case: str, tool: str, folder: Path) -> None:
    """Imports, and compiled code."""
    CASES[case][tool](folder.parent.with_name("warm"))()


def in_child(sender: Any, case: str, tool: str, folder: Path, repeat: int) -> None:
    """Send CPU seconds, the peak memory above that before, MB, and the number of objects in a result that has some."""
    warm_up(case, tool, folder)
    run = CASES[case][tool](folder)
    reset_peak()
    before, seconds, result = status_mb("VmRSS"), [], None
    while not seconds or (len(seconds) < repeat and sum(seconds) < 5):
        del result
        start = time.process_time()
        result = run()
        seconds.append(time.process_time() - start)
    facts: dict[str, float] = {"seconds": min(seconds), "peak_mb": max(status_mb("VmHWM") - before, 0.1)}
    if type(result).__name__ == "Instances":
        facts["found"] = len(result)  # type: ignore[arg-type]
    sender.send(facts)


def series(
    scenes: Sequence[tuple[Path, int]], tools: Sequence[tuple[str, str]], args: argparse.Namespace
) -> Iterator[dict[str, Any]]:
    """One row for each case and tool, with what was measured for each scene."""
    pythons, environment = dict(pair.split("=", 1) for pair in args.python), os.environ | {"OMP_NUM_THREADS": "1"}
    limits = ["--repeat", str(args.repeat), "--limit", str(args.limit), "--memory", str(args.memory)]
    places = [str(value) for scene in scenes for value in scene]
    for case, tool in tools:
        words = [pythons.get(tool, sys.executable), __file__, *limits, "--only", case, tool, *places]
        done = subprocess.run(words, capture_output=True, text=True, check=False, env=environment)
        if done.returncode:
            absent = (done.stderr.strip().splitlines() or ["no message"])[-1]
            row: dict[str, Any] = {"case": case, "tool": tool, "at": {}, "absent": absent}
        else:
            row = json.loads(done.stdout.splitlines()[-1])
        print(json.dumps(row), flush=True)
        yield row


def exponent(row: dict[str, Any], key: str, least: float = 0.0) -> str:
    """The exponent over the last numbers of objects, as text; empty with less than three values above ``least``."""
    at = [facts for facts in row["at"].values() if facts[key] > least][-FITTED:]
    if len(at) < 3:
        return ""
    return f"{np.polyfit(np.log([facts['n'] for facts in at]), np.log([facts[key] for facts in at]), 1)[0]:.2f}"


def table(rows: Sequence[dict[str, Any]], counts: Sequence[int]) -> str:
    """Seconds at each number of objects, MB at the largest that was measured, and both exponents."""
    lines = []
    for row in rows:
        cells: dict[str, str] = {"": row["case"], "tool": row["tool"]}
        for n in counts:
            cells[f"{n:,}"] = f"{row['at'][str(n)]['seconds']:.3g}" if str(n) in row["at"] else ""
        last = list(row["at"].values())[-1:]
        cells["exponent"] = row["absent"] if "absent" in row else exponent(row, "seconds")
        cells["MB"] = f"{last[0]['peak_mb']:.0f}" if last else ""
        cells["exponent of MB"] = exponent(row, "peak_mb", LEAST_MB)
        lines.append(cells)
    return markdown(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--counts", type=int, nargs="+", default=list(COUNTS))
    parser.add_argument("--repeat", type=int, default=3)
    parser.add_argument("--limit", type=float, default=60.0, help="seconds, of other tools")
    parser.add_argument("--memory", type=float, default=6000.0, help="MB, of other tools")
    parser.add_argument("--python", action="append", default=[], metavar="TOOL=PATH", help="interpreter of a tool")
    parser.add_argument("--out", type=Path, default=Path("work/bench/crowd.json"))
    parser.add_argument("--only", nargs="+", help=argparse.SUPPRESS)  # case, tool and scenes, in a process of its own
    args = parser.parse_args()
    if args.only:
        print(json.dumps(measured(args.only[0], args.only[1], args.only[2:], args)))
        return
    counts, tools = sorted(args.counts), [(case, tool) for case, own in CASES.items() for tool in own]
    ours = [(case, tool) for case, tool in tools if tool == "cellwright" and case != "predict"]
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        for name in ("growing", "same"):
            (folder / name).mkdir()
        write_scene(folder / "warm", 30)
        growing = [(own := folder / "growing" / str(n), write_scene(own, n)) for n in counts]
        same = [(own := folder / "same" / str(n), write_part(own, growing[-1][0], n)) for n in counts[:-1]]
        same.append(growing[-1])
        rows = {"growing": list(series(growing, tools, args)), "same": list(series(same, ours, args))}
    args.out.parent.mkdir(parents=True, exist_ok=True)
    args.out.write_text(json.dumps({"processor": processor(), "rows": rows}, indent=1) + "\n")
    print(f"\n{processor()}\n\nDrawn: {', '.join(f'{n:,}' for _, n in growing)} objects")
    for row in rows["growing"]:
        if found := [f"{facts['found']:,}" for facts in row["at"].values() if "found" in facts]:
            print(f"{row['case']}, {row['tool']}: {', '.join(found)} objects in the result")
    for name, own in rows.items():
        print(f"\n{name}: CPU s\n\n{table(own, counts)}")


if __name__ == "__main__":
    main()
