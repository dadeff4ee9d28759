"""Fine-tuning the bundled pretrained model for a few minutes (`nuclei/finetune`), on a kind of images new to it.

    python benchmarks/finetune.py --data work/vrdl [--minutes 5] [--object-minutes 2] [--out work/finetune]

``four_images``: fine-tuned on four of the training images, evaluated on the validation images. ``twenty_objects``: for
each validation image, fine-tuned on a window of its left half with twenty nuclei only, evaluated on the right half. The
bundled model without fine-tuning is evaluated in the same way.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import numpy as np

import cellwright as cw
from cellwright.core.dataset import Dataset, Loaded, Sample
from cellwright.core.files import write_png
from cellwright.core.instances import Instances
from tables import markdown

METRICS = ("accuracy@0.5", "accuracy@0.75", "aji", "pq")
N_IMAGES, N_OBJECTS = 4, 20


def part(sample: Sample, window: tuple[int, int, int, int], folder: Path, name: str) -> Sample:
    """``window`` (y0, x0, y1, x1) of a sample as a new sample; objects are clipped at its border."""
    y0, x0, y1, x1 = window
    assert sample.image_path is not None
    pixels = cw.read_image(sample.image_path).data[y0:y1, x0:x1, :3]
    labels = sample.read_instances().masks.to_label_map()[y0:y1, x0:x1]
    path = folder / f"{sample.id}_{name}.png"
    folder.mkdir(parents=True, exist_ok=True)
    write_png(path, pixels)
    instances = Instances.from_masks(cw.MaskSet.from_label_map(labels)[0])
    return Sample(f"{sample.id}_{name}", path, labels.shape, Loaded(instances), split="train")


def annotated_window(sample: Sample) -> tuple[int, int, int, int]:
    """The smallest square around the centre of the left half that contains twenty complete nuclei."""
    height, width = sample.image_hw
    x0, y0, x1, y1 = sample.read_instances().boxes_xyxy.T
    reach = np.maximum.reduce([width / 4 - x0, x1 - width / 4, height / 2 - y0, y1 - height / 2])
    side = int(np.ceil(np.sort(reach)[N_OBJECTS - 1]))
    top, left = height // 2 - side, width // 4 - side
    return max(top, 0), max(left, 0), min(height // 2 + side, height), min(width // 4 + side, width // 2)


def evaluated(model, samples: list[Sample]) -> dict[str, float]:
    predictions = [model.predict(cw.read_image(sample.image_path)) for sample in samples if sample.image_path]
    report = cw.evaluate(
        predictions, [sample.read_instances() for sample in samples], metrics=["accuracy", "aji", "pq"]
    )
    return {name: round(float(report[name]), 4) for name in METRICS}


def trained(samples: list[Sample], class_names: tuple[str, ...], folder: Path, minutes: float):
    """The model fine-tuned on ``samples``; an existing run is resumed or used."""
    if (folder / "model" / "model.json").is_file():
        return cw.load_model(folder)
    return cw.train("nuclei/finetune", Dataset(tuple(samples), class_names), out=folder, max_minutes=minutes).model


def four_images(data: Dataset, args: argparse.Namespace) -> list[dict]:
    training = [sample for sample in data if sample.split == "train"]
    order = np.random.default_rng(0).permutation(len(training))[:N_IMAGES]
    validation = [sample for sample in data if sample.split == "val"]
    model = trained([training[k] for k in order], data.class_names, args.out / "four_images", args.minutes)
    return [
        {"case": "four images", "model": name, **evaluated(candidate, validation)}
        for name, candidate in (("bundled", cw.load_model("nuclei")), ("fine-tuned", model))
    ]


def twenty_objects(data: Dataset, args: argparse.Namespace) -> list[dict]:
    rows = []
    for k, sample in enumerate(sample for sample in data if sample.split == "val"):
        folder = args.out / f"twenty_objects_{k}"
        height, width = sample.image_hw
        window = part(sample, annotated_window(sample), folder, "window")
        right_half = [part(sample, (0, width // 2, height, width), folder, "right")]
        model = trained([window], data.class_names, folder / "run", args.object_minutes)
        for name, candidate in (("bundled", cw.load_model("nuclei")), ("fine-tuned", model)):
            rows.append({"case": f"twenty objects of image {k}", "model": name, **evaluated(candidate, right_half)})
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="a dataset with the splits train and val")
    parser.add_argument("--minutes", type=float, default=5, help="time limit of fine-tuning on four images")
    parser.add_argument("--object-minutes", type=float, default=2, help="time limit of fine-tuning on twenty objects")
    parser.add_argument("--out", type=Path, default=Path("work/finetune"))
    args = parser.parse_args()
    data = cw.read_dataset(args.data)
    rows = four_images(data, args)
    print(markdown(rows), flush=True)
    rows += twenty_objects(data, args)
    (args.out / "results.json").write_text(json.dumps(rows, indent=1) + "\n")
    print(markdown(rows))


if __name__ == "__main__":
    main()
