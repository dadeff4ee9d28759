"""Everyone's models on the same images: our own, and networks of Cellpose and StarDist that `model import` has read.

    cellwright model import work/bench/nuclei/cellpose/models/network --out work/everyone/cellpose
    cellwright model import work/bench/nuclei/stardist/model --out work/everyone/stardist
    python benchmarks/everyone.py nuclei work/everyone/cellpose work/everyone/stardist --data work/bundled

The networks here are those that `nuclei.py` trains with the tools' own packages. ``cellwright evaluate`` predicts with
each model, with one thread, and evaluates; the CPU seconds are of the whole command. A finished part is not repeated.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from plan import METRICS, cellwright
from tables import markdown


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="+", help="names or folders of models")
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--split", default="test")
    parser.add_argument("--out", type=Path, default=Path("work/everyone/results"))
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    rows = []
    for model in args.models:
        name = Path(model).name
        out, facts = args.out / name, args.out / f"{name}.json"
        if not facts.is_file():
            words = (model, "--data", args.data, "--split", args.split, "--pictures", 0, "--device", "cpu")
            facts.write_text(json.dumps(cellwright("evaluate", *words, "--out", out, "--overwrite")))
        values = json.loads((out / "metrics.json").read_text())["values"]
        means = {metric: f"{values[metric]:.3f}" for metric in METRICS}
        rows.append({"model": name, **means, "CPU seconds": round(json.loads(facts.read_text()))})
    print(markdown(rows))


if __name__ == "__main__":
    main()
