"""The bundled pretrained model against StarDist 0.9 and Cellpose 3.1, trained from scratch on the same DSB2018 images.

    python benchmarks/nuclei.py prepare --data work/dsb2018
    python benchmarks/nuclei.py train stardist --core-minutes 30
    python benchmarks/nuclei.py train cellpose --core-minutes 30
    python benchmarks/nuclei.py predict stardist
    python benchmarks/nuclei.py predict cellpose
    python benchmarks/nuclei.py predict ours [--model nuclei] [--tune]
    python benchmarks/nuclei.py predict ours --model runs/fluorescence --stained runs/stained
    python benchmarks/nuclei.py evaluate [--split test]

A finished stage is not repeated unless ``--again`` is given. Everything is written to ``work/bench/nuclei``; the
environments of StarDist and Cellpose are created by uv or pip in ``work/bench`` the first time (TensorFlow 2.15 needs
Python 3.11 or older).

Core-minutes are the CPU time of the training process over all threads; every process is told to use one thread.
Steps, crops, augmentation and targets computed on the fly count; reading the images, the flows of Cellpose (computed
once), its size model and the validation do not. StarDist and Cellpose tune their thresholds on val with their own
functions (see `nuclei_stardist.py` and `nuclei_cellpose.py`); ours are tuned by ``cellwright tune`` with ``--tune``,
and otherwise are those of the model card. Nothing is chosen on test. ``--stained`` is a second network of ours for the
images that show stained cells or tissue, as in ``nuclei``; the dataset then has the parts ``stained`` and
``fluorescence`` that `bundled.py` writes.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import tifffile

HERE = Path(__file__).parent
PEERS = {
    "stardist": ["stardist==0.9.*", "tensorflow-cpu==2.15.*", "numpy<2", "setuptools<80"],
    "cellpose": ["cellpose==3.1.*"],
}
TITLES = {"ours": "cellwright `nuclei`", "stardist": "StarDist 0.9", "cellpose": "Cellpose 3.1"}
METRICS = ("accuracy@0.5", "accuracy@0.75", "accuracy@0.9", "aji", "pq")
MODALITIES = ("fluorescence", "stained, colour", "bright field, grey")
SAMPLES = 10_000
# One thread, and glibc keeps freed memory instead of returning it: a step of Cellpose took 5.3 s this way, else 9.0 s.
SETTINGS = {"OMP_NUM_THREADS": "1", "MALLOC_MMAP_MAX_": "0", "MALLOC_TRIM_THRESHOLD_": "100000000000"}


@dataclass(frozen=True)
class Result:
    """One tool on one split: its report and the CPU seconds of each image."""

    report: Any
    cpu_seconds: list[float]


# --- environments of the other tools ----------------------------------------------------------------------------------


def peer_python(peer: str) -> str:
    """The interpreter of a tool's environment, which is created if it does not exist."""
    folder = Path("work/bench") / peer
    python = str(folder / "bin" / "python")
    if version_of(peer, python) is None:
        uv = shutil.which("uv")
        if uv is not None:
            subprocess.run([uv, "venv", "--quiet", "--clear", "--python", "3.11", str(folder)], check=True)
            subprocess.run([uv, "pip", "install", "--quiet", "--python", python, *PEERS[peer]], check=True)
        else:
            subprocess.run([sys.executable, "-m", "venv", "--clear", str(folder)], check=True)
            subprocess.run([python, "-m", "pip", "install", "--quiet", *PEERS[peer]], check=True)
    return python


def version_of(package: str, python: str) -> str | None:
    """The version of a package in an environment; None if either is missing."""
    if not Path(python).exists():
        return None
    code = f"from importlib.metadata import version; print(version({package!r}))"
    done = subprocess.run([python, "-c", code], capture_output=True, text=True, check=False)
    return done.stdout.strip() if done.returncode == 0 else None


def run_peer(peer: str, stage: str, folder: Path, *options: str) -> None:
    """Run one stage of a tool in its environment and show its output."""
    command = [peer_python(peer), str(HERE / f"nuclei_{peer}.py"), stage, str(folder), *options]
    subprocess.run(command, check=True)


# --- stages ---------------------------------------------------------------------------------------------------------


def prepare(args: argparse.Namespace) -> None:
    """Write images (H, W, 3) uint8 and labels (H, W) int32 of every split as TIFFs, and the modality of each image."""
    import cellwright as cw

    facts: dict[str, Any] = {"data": str(args.data), "modality": {}}
    dataset = cw.read_dataset(args.data)
    for split in ("train", "val", "test"):
        samples = list(dataset.with_split(split))
        if args.limit:
            samples = samples[:: -(-len(samples) // args.limit)]
        for kind in ("images", "labels"):
            (args.folder / "data" / split / kind).mkdir(parents=True, exist_ok=True)
        for sample in samples:
            assert sample.image_path is not None
            image = rgb(cw.read_image(sample.image_path).data)
            labels = sample.read_instances().masks.to_label_map().astype(np.int32)
            for kind, pixels in (("images", image), ("labels", labels)):
                path = args.folder / "data" / split / kind / f"{file_name(sample.id)}.tif"
                tifffile.imwrite(path, pixels, compression="zlib")
            facts["modality"][file_name(sample.id)] = modality(image)
        facts[split] = [file_name(sample.id) for sample in samples]
        print(f"{split}: {len(samples)} images")
    write_json(args.folder / "data.json", facts)


def file_name(sample_id: str) -> str:
    """A sample's id as the name of a file; ids of merged datasets contain slashes."""
    return sample_id.replace("/", "__")


def rgb(pixels: np.ndarray) -> np.ndarray:
    """Pixels (H, W, C) uint8 as (H, W, 3): grey is repeated three times, alpha is removed."""
    assert pixels.dtype == np.uint8
    return np.repeat(pixels, 3, 2) if pixels.shape[2] == 1 else pixels[:, :, :3]


def modality(image: np.ndarray) -> str:
    """The modality by colour and brightness, which is unambiguous for every image of DSB2018."""
    if (np.ptp(image, axis=2).mean()) > 5:
        return MODALITIES[1]
    return MODALITIES[0] if np.median(image) < 100 else MODALITIES[2]


def train(args: argparse.Namespace) -> None:
    """Train a tool from scratch, within its core-minutes."""
    path = args.folder / args.who / "train.json"
    if path.exists() and not args.again:
        print(f"already done: {path}")
        return
    for stale in ("predict.json", "thresholds.json", "model/thresholds.json"):
        (args.folder / args.who / stale).unlink(missing_ok=True)
    run_peer(args.who, "train", args.folder, "--core-minutes", str(args.core_minutes), *args.options)


def predict(args: argparse.Namespace) -> None:
    """Write the label images of a split and the CPU seconds of each image."""
    path = args.folder / args.who / "predict.json"
    if args.again or (args.who == "ours" and read_json(path).get("tuned") != tuning_of(args)):
        path.unlink(missing_ok=True)
    if args.split in read_json(path).get("splits", {}):
        print(f"already done: {path}")
    elif args.who == "ours":
        predict_ours(args, path)
    else:
        run_peer(args.who, "predict", args.folder, "--split", args.split)


def tuning_of(args: argparse.Namespace) -> dict[str, Any]:
    """The settings that our predictions depend on."""
    return {"model": args.model, "stained": args.stained, "here": args.tune}


def predict_ours(args: argparse.Namespace, path: Path) -> None:
    """Predict with the command line; the time is measured separately, image by image, with the same models."""
    import cellwright as cw

    data = Path(read_json(args.folder / "data.json")["data"])
    splits = read_json(path).get("splits", {})
    parts = {"": args.model} if args.stained is None else {"fluorescence": args.model, "stained": args.stained}
    if args.tune:
        tuned = {part: str(path.parent / f"tuned {part}".strip()) for part in parts}
        if not splits:
            for part, model in parts.items():
                call_ours("tune", model, "--data", data / part, "--split", "val", "--out", tuned[part])
        parts = tuned
    seconds: dict[str, float] = {}
    for part, model in parts.items():
        out = path.parent / args.split / part
        options = ("--split", args.split, "--model", model, "--save", "masks", "--device", "cpu", "--out", out)
        call_ours("predict", data / part, *options)
        ids = {file_name(sample.id) for sample in cw.read_dataset(data / part).with_split(args.split)}
        seconds |= time_ours(model, args.folder, args.split, ids)
    splits[args.split] = {"ids": list(seconds), "cpu_seconds": list(seconds.values())}
    write_json(path, {"tuned": tuning_of(args), "splits": splits})


def call_ours(*words: object) -> None:
    command = [str(Path(sys.executable).with_name("cellwright")), *map(str, words), "--overwrite"]
    subprocess.run(command, check=True)


def time_ours(model: str, folder: Path, split: str, ids: set[str]) -> dict[str, float]:
    """CPU seconds of each image with one thread; as for the others, the first image of each size is run once before."""
    import cellwright as cw
    from nuclei_peer import read_split

    loaded, warm, seconds = cw.load_model(model, device="cpu"), set(), {}
    images = read_split(folder, split)
    for name, image in zip(images.ids, images.images, strict=True):
        if name not in ids:
            continue
        if image.shape not in warm:
            loaded.predict(image)
            warm.add(image.shape)
        start = time.process_time()
        loaded.predict(image)
        seconds[name] = time.process_time() - start
    return seconds


# --- evaluation -------------------------------------------------------------------------------------------------------


def evaluate(args: argparse.Namespace) -> None:
    """Write ``results_SPLIT.json`` and ``.md``: metrics on a split, by modality, and ours against the others."""
    facts = json.loads((args.folder / "data.json").read_text())
    ids = facts[args.split]
    predicted = [who for who in TITLES if args.split in read_json(args.folder / who / "predict.json").get("splits", {})]
    tools = {who: evaluated(who, args, ids) for who in predicted}
    kinds = [facts["modality"][name] for name in ids]
    results = {
        "split": args.split,
        "images": len(ids),
        "tools": {who: metrics_of(result, kinds) for who, result in tools.items()},
        "ours_against": {
            who: [against(row) for row in compared(result, tools["ours"]).to_dict("records")]
            for who, result in tools.items()
            if who != "ours" and "ours" in tools
        },
        "versions": {who: version_of(who, str(Path("work/bench") / who / "bin" / "python")) for who in PEERS},
        "trained": {who: read_json(args.folder / who / "train.json") for who in PEERS},
        "tuned": {who: read_json(args.folder / who / "predict.json").get("tuned") for who in TITLES},
    }
    write_json(args.folder / f"results_{args.split}.json", results)
    text = page(results)
    (args.folder / f"results_{args.split}.md").write_text(text)
    print(text)


def evaluated(who: str, args: argparse.Namespace, ids: list[str]) -> Result:
    """The report on the predictions of one tool, in the order of ``ids``."""
    import cellwright as cw

    data = read_json(args.folder / "data.json")["data"]
    truth = {file_name(sample.id): sample for sample in cw.read_dataset(data).with_split(args.split)}
    out = args.folder / who / args.split
    if who == "ours":
        parts = [out] if (out / "summary.csv").exists() else [out / "fluorescence", out / "stained"]
        ours = {file_name(sample.id): sample for part in parts for sample in cw.read_dataset(part)}
        predictions = [ours[name].read_instances() for name in ids]
    else:
        labels = [tifffile.imread(out / f"{name}.tif") for name in ids]
        predictions = [cw.Instances.from_masks(cw.MaskSet.from_label_map(label_map)[0]) for label_map in labels]
    truths = [truth[name].read_instances() for name in ids]
    report = cw.evaluate(predictions, truths, metrics=["accuracy", "pq", "aji"], image_ids=ids)
    return Result(report, read_json(args.folder / who / "predict.json")["splits"][args.split]["cpu_seconds"])


def metrics_of(result: Result, kinds: list[str]) -> dict[str, Any]:
    """Means over all images and over those of each modality, and the seconds."""
    table = result.report.per_image[list(METRICS)]
    parts = {kind: [k for k, own in enumerate(kinds) if own == kind] for kind in MODALITIES}
    return {
        "all": {name: result.report[name] for name in METRICS},
        **{
            kind: {"images": len(rows), **{name: float(table[name].iloc[rows].mean()) for name in METRICS}}
            for kind, rows in parts.items()
            if rows
        },
        "cpu_seconds": {"mean": float(np.mean(result.cpu_seconds)), "median": float(np.median(result.cpu_seconds))},
    }


def compared(peer: Result, ours: Result) -> Any:
    """Ours minus another tool, paired over images."""
    from cellwright.evaluation.bootstrap import compare

    return compare(peer.report, ours.report, list(METRICS), samples=SAMPLES)


def against(row: dict[str, Any]) -> dict[str, Any]:
    """A row of the comparison, and whether we are ahead: the 95 % interval excludes 0, or it is undecided."""
    outcome = "ahead" if row["low"] > 0 else "behind" if row["high"] < 0 else "undecided"
    named = {"metric": row["metric"], "peer": row["first"], "ours": row["second"]}
    return {**named, **{key: row[key] for key in ("difference", "low", "high", "p")}, "outcome": outcome}


# --- tables ---------------------------------------------------------------------------------------------------------


def page(results: dict[str, Any]) -> str:
    """The results as Markdown."""
    tools = results["tools"]
    head = "| | " + " | ".join(METRICS) + " | CPU s per image |\n|---|" + "---:|" * (len(METRICS) + 1)
    parts = [f"{results['images']} images of the {results['split']} split; means over images.", head]
    for who, tool in tools.items():
        parts[-1] += row(TITLES[who], [*tool["all"].values()], f"{tool['cpu_seconds']['mean']:.2f}")
    for kind in MODALITIES:
        rows = {who: tool[kind] for who, tool in tools.items() if kind in tool}
        if rows:
            count = next(iter(rows.values()))["images"]
            parts.append(head.replace("| |", f"| {kind}, {count} images |").replace(" CPU s per image |", ""))
            parts[-1] = parts[-1].removesuffix("---:|")
            parts[-1] += "".join(row(TITLES[who], [means[name] for name in METRICS]) for who, means in rows.items())
    for who, table in results["ours_against"].items():
        lines = f"| ours minus {TITLES[who]} | difference | 95 % interval from | to | p | ours is |"
        lines += "\n|---|---:|---:|---:|---:|---|"
        for each in table:
            numbers = " | ".join(f"{each[key]:+.3f}" for key in ("difference", "low", "high"))
            lines += f"\n| {each['metric']} | {numbers} | {each['p']:.4f} | {each['outcome']} |"
        parts.append(lines)
    parts += [training_line(who, facts) for who, facts in results["trained"].items() if facts]
    return "\n\n".join(parts) + "\n"


def row(title: str, values: list[float], *more: str) -> str:
    return f"\n| {title} | " + " | ".join([*(f"{value:.3f}" for value in values), *more]) + " |"


def training_line(who: str, facts: dict[str, Any]) -> str:
    """A sentence about the training of a tool."""
    minutes = f"{facts['cpu_seconds'] / 60:.1f} of {facts['core_minutes']:g} core-minutes"
    return f"{TITLES[who]}: {minutes}, {facts['steps']} steps, {facts['crops']} crops of {facts['images']} images."


def read_json(path: Path) -> dict[str, Any]:
    """The facts that a stage wrote; empty if it has not run."""
    return json.loads(path.read_text()) if path.exists() else {}


def write_json(path: Path, facts: dict[str, Any]) -> None:
    from cellwright.core.files import write_json as write

    path.parent.mkdir(parents=True, exist_ok=True)
    write(path, facts)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, default=Path("work/bench/nuclei"))
    stages = parser.add_subparsers(dest="stage", required=True)
    stage = stages.add_parser("prepare", help="write the splits for all tools")
    stage.add_argument("--data", type=Path, default=Path("work/dsb2018"))
    stage.add_argument("--limit", type=int, help="at most this many images per split, for trying the stages")
    stage = stages.add_parser("train", help="train StarDist or Cellpose from scratch; further options are passed on")
    stage.add_argument("who", choices=sorted(PEERS))
    stage.add_argument("--core-minutes", type=float, default=30.0)
    stage.add_argument("--again", action="store_true")
    stage = stages.add_parser("predict", help="predict on a split")
    stage.add_argument("who", choices=sorted(TITLES))
    stage.add_argument("--split", default="test", choices=["val", "test"])
    stage.add_argument("--model", default="nuclei", help="ours: a name or a model folder")
    stage.add_argument("--stained", help="ours: a second model folder, for images of stained cells and tissue")
    stage.add_argument("--tune", action="store_true", help="ours: tune a copy on val first")
    stage.add_argument("--again", action="store_true")
    stage = stages.add_parser("evaluate", help="evaluate all tools that have predicted")
    stage.add_argument("--split", default="test", choices=["val", "test"])
    args, args.options = parser.parse_known_args()
    if args.options and args.stage != "train":
        parser.error(f"unknown options: {' '.join(args.options)}")
    {"prepare": prepare, "train": train, "predict": predict, "evaluate": evaluate}[args.stage](args)


if __name__ == "__main__":
    if SETTINGS.items() <= os.environ.items():
        sys.exit(main())
    # The C library reads these settings when a process starts.
    os.execve(sys.executable, [sys.executable, *sys.argv], {**os.environ, **SETTINGS})
