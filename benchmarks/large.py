"""Images of any size: is tiled the same as whole, how do time and memory grow, and what do others need?

    python benchmarks/large.py mosaic --data work/vrdl          tiled against whole, five sizes of tiles
    python benchmarks/large.py slide --sides 2000 5000 10000    a drawn slide: time, memory, kills, workers, shards
    python benchmarks/large.py finish --objects 1000000 ...     the finishing step alone, on synthetic tiles
    python benchmarks/large.py peers --data work/vrdl           Cellpose 3.1 and StarDist 0.9 on the same mosaic

Everything runs through the command line in processes of their own; time is wall time, memory the largest resident set
of a process. Results go to ``work/bench/large``; the tables of docs/scale.md and docs/benchmarks.md are printed.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import resource
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import tifffile

import cellwright as cw
from cellwright.core.files import write_json
from cellwright.data.synthetic import draw_field
from nuclei import peer_python
from tables import markdown

HERE, OUT = Path(__file__).parent, Path("work/bench/large")
CORES_PX = (256, 384, 512, 768, 1024)
PATCH_PX = 1000  # not a multiple of the tiles, so that no seam lies between two patches
NUCLEI_PER_MPX = 1000
COMPARED = ("labels.tif", "objects.geojson.gz", "summary.csv")
PEERS = {"stardist": "StarDist 0.9, `predict_instances_big`", "cellpose": "Cellpose 3.1, `tile=True`"}
EDGE_PX = 8  # a straight edge of this length along a seam is a cut


@dataclass(frozen=True)
class Run:
    """A finished command."""

    seconds: float
    cpu_seconds: float
    peak_gb: float
    text: str


def measured(words: Sequence[object], *, expected: int = 0) -> Run:
    """Run a command in a process of its own, with this process's environment."""
    report = OUT / "usage.json"
    code = (
        "import json,resource,subprocess,sys,time;t=time.perf_counter();"
        "p=subprocess.run(sys.argv[2:],capture_output=True,text=True);u=resource.getrusage(resource.RUSAGE_CHILDREN);"
        "json.dump([p.returncode,time.perf_counter()-t,u.ru_utime+u.ru_stime,u.ru_maxrss,p.stdout+p.stderr],"
        "open(sys.argv[1],'w'))"
    )
    subprocess.run([sys.executable, "-c", code, str(report), *map(str, words)], check=True)
    code_of, seconds, cpu, peak_kb, text = json.loads(report.read_text())
    if code_of != expected:
        raise SystemExit(f"exit code {code_of}: {' '.join(map(str, words))}\n{text}")
    return Run(seconds, cpu, peak_kb / 2**20, text)


def predict(image: Path, out: Path, *more: object) -> list[object]:
    """The words of a prediction by tiles."""
    return [sys.executable, "-m", "cellwright", "predict", image, "--labels=tiff", "--out", out, *more]


def digests(job: Path) -> dict[str, str]:
    """What must be the same, whoever predicted the tiles."""
    return {name: hashlib.sha256((job / name).read_bytes()).hexdigest() for name in COMPARED}


# --- mosaics of real images -----------------------------------------------------------------------------------------


def mosaic_of(data: Path, side: int) -> np.ndarray:
    """Real images side by side, (side, side, 3) uint8."""
    canvas, x, y, height = np.zeros((side, side, 3), np.uint8), 0, 0, 0
    while y < side:
        for sample in cw.read_dataset(data):
            assert sample.image_path is not None
            pixels = cw.read_image(sample.image_path).data[:, :, :3]
            part = pixels[: side - y, : side - x]
            canvas[y : y + part.shape[0], x : x + part.shape[1]] = part
            x, height = x + part.shape[1], max(height, part.shape[0])
            if x >= side:
                x, y, height = 0, y + height, 0
            if y >= side:
                break
    return canvas


def write_mosaic(args: argparse.Namespace) -> Path:
    path = OUT / f"mosaic_{args.data.name}_{args.side}.tif"
    if not path.exists():
        tifffile.imwrite(path, mosaic_of(args.data, args.side), tile=(256, 256), photometric="rgb")
    return path


def mosaic(args: argparse.Namespace) -> None:
    """Objects of tiles against those of the whole image."""
    path = write_mosaic(args)
    model = cw.load_model(args.model)
    whole = model.predict(path)
    rows = []
    for core in CORES_PX:
        job, results = OUT / f"mosaic_job_{core}", OUT / f"mosaic_{core}.json"
        run = measured(predict(path, job, "--model", args.model, "--tile", core, "--overwrite"))
        measured(
            [sys.executable, "-m", "cellwright", "export", job, "--to", "coco_results", "--out", results, "--overwrite"]
        )
        entries = json.loads(results.read_text())
        tiled = cw.MaskSet.from_rle([entry["segmentation"] for entry in entries], whole.image_hw)
        rows.append({"tile": core, **agreement(whole.masks, tiled), "s": f"{run.seconds:.0f}"} | peak(run))
    print(f"{path.name}, {args.model}: {len(whole)} objects in the whole image\n\n{markdown(rows)}")
    write_json(OUT / f"mosaic_{args.data.name}_{Path(args.model).name}.json", {"whole": len(whole), "rows": rows})


def peak(run: Run) -> dict[str, str]:
    return {"peak memory, GB": f"{run.peak_gb:.2f}"}


def agreement(whole: cw.MaskSet, tiled: cw.MaskSet) -> dict[str, object]:
    """How many objects are the same pixels, how many overlap by more than IoU .99, and how many by less."""
    i, _, iou = whole.iou(tiled)
    best = np.zeros(len(whole))
    np.maximum.at(best, i, iou)
    return {
        "objects": len(tiled),
        "the same pixels": int((best == 1).sum()),
        "IoU > .99": int(((best > 0.99) & (best < 1)).sum()),
        "others": int((best <= 0.99).sum()),
    }


# --- a drawn slide --------------------------------------------------------------------------------------------------


def slide_blocks(side: int, block: int) -> Iterator[np.ndarray]:
    """The tiles of a drawn slide, row by row: patches of tissue in a disc, and glass around it."""
    n = -(-side // PATCH_PX)
    patches: dict[int, np.ndarray] = {}

    def row_of(k: int) -> np.ndarray:
        if k not in patches:
            patches.pop(k - 2, None)
            patches[k] = np.concatenate([patch(k, x, n) for x in range(n)], axis=1)[:, :side]
        return patches[k]

    for y in range(0, side, block):
        ys = np.arange(y, min(y + block, side))
        band = np.concatenate([row_of(k)[ys[ys // PATCH_PX == k] % PATCH_PX] for k in sorted({*(ys // PATCH_PX)})])
        for x in range(0, side, block):
            yield np.ascontiguousarray(np.pad(band[:, x : x + block], padding(band[:, x : x + block], block), "edge"))


def padding(part: np.ndarray, block: int) -> list[tuple[int, int]]:
    return [(0, block - part.shape[0]), (0, block - part.shape[1]), (0, 0)]


def patch(y: int, x: int, n: int) -> np.ndarray:
    """Tissue, its edge or glass, (PATCH_PX, PATCH_PX, 3); 16 different drawings of tissue."""
    rows, columns = (np.arange(PATCH_PX) + k * PATCH_PX for k in (y, x))
    middle = n * PATCH_PX / 2
    distance = np.hypot(rows[:, None] - middle, columns[None] - middle)
    is_tissue = distance < 0.45 * n * PATCH_PX
    glass = np.full((PATCH_PX, PATCH_PX, 3), 243, np.uint8)
    if not is_tissue.any():
        return glass
    return np.where(is_tissue[:, :, None], drawn((y * 7 + x * 3) % 16), glass)


def drawn(seed: int, kept: dict[int, np.ndarray] = {}) -> np.ndarray:  # noqa: B006 - a cache
    if seed not in kept:
        kept[seed] = draw_field(seed, (PATCH_PX, PATCH_PX), NUCLEI_PER_MPX * PATCH_PX**2 // 10**6)[0].data
    return kept[seed]


def write_slide(side: int) -> Path:
    path = OUT / f"slide_{side}.tif"
    if not path.exists():
        blocks = slide_blocks(side, 256)
        tifffile.imwrite(
            path.with_suffix(".part.tif"), blocks, shape=(side, side, 3), dtype=np.uint8, tile=(256, 256),
            photometric="rgb", compression="jpeg", compressionargs={"level": 90}, bigtiff=True,
            resolution=(40000, 40000), resolutionunit="CENTIMETER",
        )  # fmt: skip
        path.with_suffix(".part.tif").replace(path)
    return path


def slide(args: argparse.Namespace) -> None:
    """Time and memory by size; then kills, workers, Dask and shards at the smallest size."""
    rows, seconds = [], []
    for side in args.sides:
        path, job = write_slide(side), OUT / f"slide_job_{side}"
        run = measured(predict(path, job, "--overwrite", "--workers", args.workers, *args.options))
        summary = (job / "summary.csv").read_text().splitlines()
        facts = dict(zip(*(line.split(",") for line in summary[:2]), strict=False))
        rows.append(
            {"side, px": side, "tiles": facts["tiles"], "objects": facts["objects"], "wall s": f"{run.seconds:.0f}"}
            | {"CPU s": f"{run.cpu_seconds:.0f}", "CPU s per Mpx": f"{run.cpu_seconds / side**2 * 1e6:.2f}"}
            | peak(run)
            | {"seams: density, size": f"{facts['seam_density_ratio']}, {facts['seam_size_ratio']}"}
        )
        seconds.append(run.cpu_seconds)
        print(markdown(rows[-1:]), flush=True)
    if len(args.sides) > 1:
        exponent = np.polyfit(np.log(np.square(args.sides, dtype=float)), np.log(seconds), 1)[0]
        print(f"\nCPU time grows with area to the power {exponent:.3f}")
    print(f"\n{markdown(rows)}")
    write_json(OUT / "slide.json", {"rows": rows, "same": same_bytes(min(args.sides), args.options)})


def same_bytes(side: int, options: Sequence[str]) -> dict[str, bool]:
    """Whether every way to run a job gives the same bytes."""
    path = write_slide(side)
    reference, same = digests(OUT / f"slide_job_{side}"), {}
    ways = {"1 worker": ["--workers", "1"], "2 workers": ["--workers", "2"], "Dask": ["--dask", "local"]}
    for name, more in ways.items():
        out = OUT / "again"
        measured(predict(path, out, "--overwrite", *options, *more))
        same[name] = digests(out) == reference
    shutil.rmtree(out)
    shards = [subprocess.Popen([*map(str, predict(path, out, f"--shard={k}/3", *options))]) for k in (1, 2, 3)]
    same["3 shards at the same time"] = [shard.wait() for shard in shards] == [0] * 3 and digests(out) == reference
    shutil.rmtree(out)
    for n_tiles in (3, 9):  # killed twice
        process = subprocess.Popen([*map(str, predict(path, out, "--quiet", *options))])
        while process.poll() is None and len(list(out.glob("tiles/*.tile"))) < n_tiles:
            time.sleep(0.05)
        process.send_signal(signal.SIGKILL)
        process.wait()
    measured(predict(path, out, *options))
    same["killed twice"] = digests(out) == reference
    print(same)
    return same


# --- finishing ------------------------------------------------------------------------------------------------------


def finish(args: argparse.Namespace) -> None:
    """CPU time, s, and memory of finishing alone, on tiles of drawn objects."""
    rows = []
    for n_objects in args.objects:
        code = f"import sys; sys.path.insert(0, {str(HERE)!r}); import large; large.finish_synthetic({n_objects})"
        run = measured([sys.executable, "-c", code])
        rows.append({"objects": n_objects, **json.loads(run.text.splitlines()[-1])} | peak(run))
        print(markdown(rows[-1:]), flush=True)
    print(f"\n{markdown(rows)}")
    write_json(OUT / "finish.json", {"rows": rows})


def finish_synthetic(n_objects: int) -> None:
    """Write tile files with the objects of one drawn tile again and again, then finish them; prints the times."""
    from cellwright.core.instances import Instances
    from cellwright.data.images.source import open_image
    from cellwright.prediction.options import PredictOptions
    from cellwright.prediction.tiling.facts import ImageFacts
    from cellwright.prediction.tiling.finish import (
        LabelPainter,
        resolve,
        write_objects_table,
        write_outlines,
    )
    from cellwright.prediction.tiling.grid import Grid
    from cellwright.prediction.tiling.label_writers import write_label_tiff
    from cellwright.prediction.tiling.ledger import Ledger
    from cellwright.prediction.tiling.work import TileWork, shifted

    core = 1024
    image, truth = draw_field(0, (core, core), 2600)
    truth = Instances.from_masks(truth.masks, scores=np.linspace(0.9, 0.5, len(truth)))

    class Perfect:
        def objects(self, source: object, facts: object, tile: object) -> Instances:
            return truth

    side = max(int((n_objects / len(truth)) ** 0.5), 1)
    hw = (side * core, side * core)
    one = TileWork(
        Perfect(), open_image(image), open_image(image), ImageFacts((core, core), (core, core)),
        Grid((core, core), (core, core), 16, core_px=core, halo_px=64), PredictOptions(),
    ).record(0)  # fmt: skip
    grid = Grid(hw, hw, 16, core_px=core, halo_px=64)
    root = OUT / f"finish_{n_objects}"
    shutil.rmtree(root, ignore_errors=True)
    ledger, final = (Ledger(root / name, range(len(grid)), "job") for name in ("job", "final"))
    from dataclasses import replace

    for tile in grid:
        objects = one.stored.objects
        masks = shifted(objects.masks, tile.core.y0, tile.core.x0, hw)
        moved = replace(objects, image_hw=hw, masks=masks, boxes_xyxy=masks.boxes.astype(np.float32))
        ledger.write(tile.index, replace(one, stored=replace(one.stored, objects=moved)))
    times = {"before, GB": f"{resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20:.2f}"}
    start, began = time.process_time(), time.perf_counter()
    tiles = resolve(ledger, final, grid, None)
    times["seams"] = f"{time.process_time() - start:.1f}"
    steps = {
        "table": lambda: write_objects_table(root / "objects.parquet", tiles, ["nucleus"]),
        "outlines": lambda: write_outlines(root / "o.geojson.gz", tiles, ["nucleus"], image_name="x", sample_id="x"),
        "labels": lambda: write_label_tiff(root / "labels.tif", hw, LabelPainter(tiles)),
    }
    for name, step in steps.items():
        start = time.process_time()
        step()
        times[name] = f"{time.process_time() - start:.1f}"
    times |= {"wall": f"{time.perf_counter() - began:.1f}", "objects written": tiles.n_objects}
    times["GeoJSON, GB"] = f"{(root / 'o.geojson.gz').stat().st_size / 1e9:.2f}"
    shutil.rmtree(root)
    print(json.dumps(times))


# --- other tools ----------------------------------------------------------------------------------------------------


def peers(args: argparse.Namespace) -> None:
    """The same mosaic, one thread each, in one run; `nuclei.py` must have trained the others in ``--folder``.

    Cellpose and we get the diameter of the nuclei, which StarDist does not need.
    """
    path = write_mosaic(args)
    job = OUT / "peers_ours"
    ours, options = "cellwright `nuclei`, `--tile 1024`", ("--tile=1024", f"--diameter={args.diameter}", "--overwrite")
    runs = {ours: measured(predict(path, job, *options))}
    labels, lines = {ours: tifffile.imread(job / "labels.tif")}, {ours: seams_of(job)}
    for who, title in PEERS.items():
        out = OUT / f"peers_{who}.tif"
        words = [peer_python(who), HERE / "large_peer.py", who, args.folder, path, out, args.diameter]
        runs[title] = measured(words)
        labels[title] = tifffile.imread(out)
        lines[title] = json.loads(out.with_suffix(".json").read_text())
    rows = [
        {"tool": title, "objects": len(np.unique(labels[title])) - 1, "wall s": f"{run.seconds:.0f}"}
        | {"CPU s": f"{run.cpu_seconds:.0f}"}
        | peak(run)
        | {
            "straight edges at seams": cuts(labels[title], lines[title]),
            "beside": cuts(labels[title], lines[title], 37),
        }
        for title, run in runs.items()
    ]
    print(markdown(rows))
    write_json(OUT / "peers.json", {"rows": rows})


def seams_of(job: Path) -> dict[str, list[int]]:
    """The rows and columns of pixels at which the cores of a job begin."""
    from cellwright.prediction.tiling.job import JobFacts

    grid = JobFacts.read(job).grid
    starts = [sorted({tile.core[axis] for tile in grid if tile.core[axis] > 0}) for axis in (0, 1)]
    rows, columns = ([round(s / scale) for s in axis] for axis, scale in zip(starts, grid.scale_yx, strict=True))
    return {"rows": rows, "columns": columns}


def cuts(labels: np.ndarray, lines: dict[str, list[int]], offset: int = 0) -> int:
    """Objects with a straight edge of at least `EDGE_PX` along a seam, or beside the seams for comparison."""
    n = 0
    for pixels, starts in ((labels, lines["rows"]), (labels.T, lines["columns"])):
        for start in starts:
            at = start + offset
            if not 0 < at < len(pixels):
                continue
            for before, after in ((pixels[at - 1], pixels[at]), (pixels[at], pixels[at - 1])):
                ids = before[(before != after) & (before > 0)]
                n += int((np.bincount(ids) >= EDGE_PX).sum()) if len(ids) else 0
    return n


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    stages = parser.add_subparsers(dest="stage", required=True)
    for name in ("mosaic", "peers"):
        stage = stages.add_parser(name)
        stage.add_argument("--data", type=Path, default=Path("work/vrdl"))
        stage.add_argument("--side", type=int, default=2048 if name == "mosaic" else 4096)
        stage.add_argument("--model", default="nuclei")
        stage.add_argument("--diameter", type=float, default=18.5, help="of the nuclei, for `peers`, px")
        stage.add_argument("--folder", type=Path, default=Path("work/bench/nuclei"), help="of nuclei.py")
    stage = stages.add_parser("slide")
    stage.add_argument("--sides", type=int, nargs="+", default=[2000, 5000, 10000])
    stage.add_argument("--workers", type=int, default=1)
    stage.add_argument("--options", nargs="*", default=[], help="further options of predict")
    stage = stages.add_parser("finish")
    stage.add_argument("--objects", type=int, nargs="+", default=[100_000, 1_000_000, 10_000_000])
    args = parser.parse_args()
    OUT.mkdir(parents=True, exist_ok=True)
    {"mosaic": mosaic, "slide": slide, "finish": finish, "peers": peers}[args.stage](args)


if __name__ == "__main__":
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    main()
