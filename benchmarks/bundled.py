"""The dataset of the bundled model `nuclei`: four sources whose licences let everyone use the weights, with splits.

    python benchmarks/bundled.py data --dsb dsb2018_stage1_train --packs FOLDER --out work/bundled
    cellwright train nuclei/stained --data work/bundled/stained --out runs/stained
    cellwright tune runs/stained --data work/bundled/stained --out work/tuned
    cellwright model export work/tuned --to half --out work/half
    python benchmarks/bundled.py release work/half --data work/bundled/stained --score .4 --out nuclei_stained

FOLDER has ``nuinsseg_he`` (CC BY 4.0), ``tnbc_he`` (CC BY 4.0) and ``bitdepth_dapi`` (Apache-2.0), each with an
``index.csv`` that names the group of each image. Groups never part: organs of NuInsSeg and of the DAPI images, patients
of TNBC. A fifth of the groups is test, a tenth val. The Data Science Bowl (CC0) keeps the split of the first model.

``stained`` and ``fluorescence`` in the output folder have the images on which the two networks of ``nuclei`` are
trained: stained ones, and all others, with inverted copies of stained ones, whose colours do not show that. ``mean``
writes a model with the mean of the weights of two. ``release`` writes the folder of a bundled model: ``--score`` is the
threshold of both, on the calibrated scores; the folder's README.md, the model card, is written by hand.
"""

from __future__ import annotations

import argparse
import csv
import json
import shutil
from collections import Counter
from collections.abc import Mapping
from dataclasses import asdict, replace
from importlib import resources
from pathlib import Path

import cv2
import numpy as np
from safetensors import safe_open
from safetensors.numpy import load_file, save_file

import cellwright as cw
from cellwright.core.dataset import Dataset, Sample
from cellwright.core.files import write_json
from cellwright.data.formats import FORMATS, WriteOptions
from cellwright.data.images.channels import is_stained
from cellwright.data.merge import merge_datasets
from cellwright.models.weights.model_folder import INFO, WEIGHTS, read_model_info

GROUPS = {"nuinsseg_he": "organ", "tnbc_he": "patient", "bitdepth_dapi": "organ"}
TEST, VAL = 0.2, 0.1
LICENCES = {"dsb": "CC0-1.0", "nuinsseg_he": "CC-BY-4.0", "tnbc_he": "CC-BY-4.0", "bitdepth_dapi": "Apache-2.0"}
MIN_AREA_PX = 8


def groups_of(pack: Path) -> dict[str, str]:
    """The group of each image, by the name of its file."""
    with (pack / "index.csv").open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    image, *others = rows[0]
    column = next(name for name in others if GROUPS[pack.name] in name.lower())
    return {Path(row[image]).stem: row[column] for row in rows}


def splits_of(groups: Mapping[str, str]) -> dict[str, str]:
    """The split of each group."""
    names = sorted(set(groups.values()))
    order = list(np.random.default_rng(0).permutation(names))
    n_test, n_val = max(round(len(names) * TEST), 1), max(round(len(names) * VAL), 1)
    test, val = set(order[:n_test]), set(order[n_test : n_test + n_val])
    return {name: "test" if name in test else "val" if name in val else "train" for name in names}


def dsb(folder: Path) -> Dataset:
    """The Data Science Bowl with the split of the bundled model."""
    text = resources.files("cellwright").joinpath("weights/nuclei_1/split.json").read_text(encoding="utf-8")
    split_of = {name: split for split in ("val", "test") for name in json.loads(text)[split]}
    dataset = cw.read_dataset(folder)
    samples = [replace(sample, split=split_of.get(sample.id, "train")) for sample in dataset]
    return replace(dataset.with_samples(samples), class_names=("nucleus",))


def pack(folder: Path) -> Dataset:
    """One of the packs, with its groups."""
    dataset, groups = cw.read_dataset(folder), groups_of(folder)
    splits, samples = splits_of(groups), []
    for sample in dataset:
        stem = Path(sample.id).name
        group = groups[stem]
        named = replace(sample, id=f"{folder.name}/{stem}", group=f"{folder.name}/{group}", split=splits[group])
        samples.append(named)
    return replace(dataset.with_samples(samples), class_names=("nucleus",))


def inverted(samples: list[Sample], folder: Path) -> list[Sample]:
    """The Data Science Bowl's training images among ``samples``, inverted; written to ``folder`` as PNG files."""
    chosen = [sample for sample in samples if sample.split == "train" and _source(sample.id) == "dsb"]
    folder.mkdir(parents=True, exist_ok=True)
    for sample in chosen:
        rgb = cw.read_image(sample.image_path).data[:, :, :3]
        cv2.imwrite(str(folder / f"{sample.id}.png"), 255 - rgb[:, :, ::-1])
    return [replace(s, id=f"dsb/inverted/{s.id}", image_path=(folder / f"{s.id}.png").resolve()) for s in chosen]


def make_data(args: argparse.Namespace) -> None:
    """Write the merged dataset and its two parts."""
    merged = merge_datasets([dsb(args.dsb), *(pack(args.packs / name) for name in GROUPS)])
    names = {sample.id for sample in merged if is_stained(cw.read_image(sample.image_path))}
    stained = [sample for sample in merged if sample.id in names]
    others = [sample for sample in merged if sample.id not in names]
    parts = {
        "": merged.samples,
        "stained": stained,
        "fluorescence": [*others, *inverted(stained, args.out / "inverted")],
    }
    for name, samples in parts.items():
        out = args.out / name
        out.mkdir(parents=True, exist_ok=True)
        FORMATS["coco"].write(merged.with_samples(samples), out, WriteOptions(place=out))
    for (source, split), n in sorted(Counter((_source(s.id), str(s.split)) for s in merged).items()):
        print(f"{source} {split}: {n}")


def release(args: argparse.Namespace) -> None:
    """Write the folder of a bundled model."""
    info, dataset = read_model_info(args.model), cw.read_dataset(args.data)
    sources = {_source(sample.id) for sample in dataset}
    knots = info.calibration
    assert knots is not None, "tune the model first"
    raw = float(np.interp(args.score, knots["expected_iou"], knots["scores"]))
    thresholds = {"score/nucleus": round(raw, 4), "min_area_px/nucleus": float(MIN_AREA_PX)}
    licences = ", ".join(sorted({licence for name, licence in LICENCES.items() if name in sources}))
    # Grey images are of nuclei, whatever the channel is called; percentiles make the range of values irrelevant.
    facts = {"values": None} | ({"channels": ("nuclei",)} if not info.channels else {})
    recipe = {**info.recipe, "model": {**info.recipe["model"], "init": None}}  # the card says what it started from
    args.out.mkdir(parents=True, exist_ok=True)
    shutil.copy(args.model / WEIGHTS, args.out / WEIGHTS)
    write_json(
        args.out / INFO,
        {
            "schema_version": 1,
            **asdict(replace(info, **facts, recipe=recipe, thresholds=thresholds, data_licence=licences)),
        },
    )
    split = {part: sorted(s.id for s in dataset.with_split(part)) for part in ("train", "val", "test")}
    write_json(args.out / "split.json", split)


def mean_of(args: argparse.Namespace) -> None:
    """Write a model folder with the mean of the weights of two, of which one started from the other."""
    first, second = (load_file(folder / WEIGHTS) for folder in (args.first, args.second))
    shutil.copytree(args.second, args.out)
    means = {name: (array + first[name]) / 2 if array.dtype.kind == "f" else array for name, array in second.items()}
    with safe_open(args.second / WEIGHTS, "np") as file:
        save_file(means, args.out / WEIGHTS, metadata=file.metadata())


def _source(name: str) -> str:
    return name.partition("/")[0] if "/" in name else "dsb"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    verbs = parser.add_subparsers(required=True)
    making = verbs.add_parser("data")
    making.add_argument("--dsb", type=Path, required=True)
    making.add_argument("--packs", type=Path, required=True)
    making.add_argument("--out", type=Path, default=Path("work/bundled"))
    making.set_defaults(run=make_data)
    releasing = verbs.add_parser("release")
    releasing.add_argument("model", type=Path)
    releasing.add_argument("--data", type=Path, required=True)
    releasing.add_argument("--score", type=float, required=True)
    releasing.add_argument("--out", type=Path, required=True)
    releasing.set_defaults(run=release)
    averaging = verbs.add_parser("mean")
    averaging.add_argument("first", type=Path)
    averaging.add_argument("second", type=Path)
    averaging.add_argument("--out", type=Path, required=True)
    averaging.set_defaults(run=mean_of)
    args = parser.parse_args()
    args.run(args)


if __name__ == "__main__":
    main()
