"""The dataset of the bundled model `nuclei`: four sources whose licences let everyone use the weights, with splits.

    python benchmarks/bundled.py --dsb dsb2018_stage1_train --packs FOLDER --out work/bundled

FOLDER has ``nuinsseg_he`` (CC BY 4.0), ``tnbc_he`` (CC BY 4.0) and ``bitdepth_dapi`` (Apache-2.0), each with an
``index.csv`` that names the group of each image. Groups never part: organs of NuInsSeg and of the DAPI images, patients
of TNBC. A fifth of the groups is test, a tenth val. The Data Science Bowl (CC0) keeps the split of the bundled model.
"""

from __future__ import annotations

import argparse
import csv
import json
from collections import Counter
from collections.abc import Mapping
from dataclasses import replace
from importlib import resources
from pathlib import Path

import numpy as np

import cellwright as cw
from cellwright.core.dataset import Dataset
from cellwright.data.formats import FORMATS, WriteOptions
from cellwright.data.merge import merge_datasets

GROUPS = {"nuinsseg_he": "organ", "tnbc_he": "patient", "bitdepth_dapi": "organ"}
TEST, VAL = 0.2, 0.1


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
    text = resources.files("cellwright").joinpath("weights/nuclei/split.json").read_text(encoding="utf-8")
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


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dsb", type=Path, required=True)
    parser.add_argument("--packs", type=Path, required=True)
    parser.add_argument("--out", type=Path, default=Path("work/bundled"))
    args = parser.parse_args()
    merged = merge_datasets([dsb(args.dsb), *(pack(args.packs / name) for name in GROUPS)])
    args.out.mkdir(parents=True, exist_ok=True)
    FORMATS["coco"].write(merged, args.out, WriteOptions(place=args.out))
    for (source, split), n in sorted(Counter((s.id.rpartition("/")[0] or "dsb", str(s.split)) for s in merged).items()):
        print(f"{source} {split}: {n}")


if __name__ == "__main__":
    main()
