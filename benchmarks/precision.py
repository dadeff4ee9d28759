"""Prediction in int8 and bf16 against float32: accuracy on a split of a dataset, and CPU seconds per image.

    python benchmarks/precision.py --data work/bundled --split val [--model nuclei] [--backends openvino-bf16]

The same images are predicted with OpenVINO in all of them, one after the other in one process, with one thread. A row
for each source of images (the part of their ids before the slash), and for all.
"""

from __future__ import annotations

import argparse
import os
import time
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")

import cellwright as cw
from tables import markdown

METRICS = ("accuracy@0.5", "accuracy@0.75", "accuracy@0.9", "aji", "pq")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--split", default="val")
    parser.add_argument("--model", default="nuclei")
    parser.add_argument("--backends", nargs="+", default=["openvino-bf16", "openvino-int8"], help="besides float32")
    args = parser.parse_args()
    samples = [sample for sample in cw.read_dataset(args.data) if sample.split == args.split]
    images = [cw.read_image(sample.image_path) for sample in samples if sample.image_path]
    truths = [sample.read_instances() for sample in samples]
    sources = [sample.id.rpartition("/")[0] or "dsb" for sample in samples]
    models = [cw.load_model(args.model, device="cpu", backend=name) for name in ("openvino", *args.backends)]
    found, seconds = ([[] for _ in models] for _ in range(2))
    for image in images:
        for k, model in enumerate(models):
            start = time.process_time()
            found[k].append(model.predict(image))
            seconds[k].append(time.process_time() - start)
    rows = []
    for source in ["all", *sorted(set(sources))]:
        own = [k for k, name in enumerate(sources) if source in ("all", name)]
        for name, objects, times in zip(
            ("float32", *(own.removeprefix("openvino-") for own in args.backends)), found, seconds, strict=True
        ):
            report = cw.evaluate([objects[k] for k in own], [truths[k] for k in own], metrics=["accuracy", "aji", "pq"])
            row = {"images": source, "n": len(own), "computed in": name}
            row |= {metric: round(float(report[metric]), 4) for metric in METRICS}
            rows.append(
                row
                | {
                    "objects": sum(len(objects[k]) for k in own),
                    "CPU s": round(sum(times[k] for k in own) / len(own), 3),
                }
            )
    print(markdown(rows))


if __name__ == "__main__":
    main()
