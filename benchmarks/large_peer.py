"""The part of `large.py` that runs in the environment of StarDist or Cellpose: one large image to a label image."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import tifffile

BLOCK_PX, OVERLAP_PX, CONTEXT_PX = 1024, 128, 96


def main() -> None:
    who, folder, diameter_px = sys.argv[1], Path(sys.argv[2]), float(sys.argv[5])
    image, out = tifffile.imread(sys.argv[3]), Path(sys.argv[4])
    lines: dict[str, list[int]] = {"rows": [], "columns": []}
    if who == "stardist":
        from stardist.models import StarDist2D  # type: ignore[import-not-found]

        from nuclei_stardist import load, prepared

        load(folder, folder / "stardist")  # tunes the thresholds on val, if that has not been done
        model = StarDist2D(None, name="model", basedir=str(folder / "stardist"))
        labels = model.predict_instances_big(
            prepared(image), axes="YXC", block_size=BLOCK_PX, min_overlap=OVERLAP_PX, context=CONTEXT_PX
        )[0]
        steps = BLOCK_PX - OVERLAP_PX - 2 * CONTEXT_PX
        lines = {name: list(range(steps, image.shape[0], steps)) for name in lines}
    else:
        from nuclei_cellpose import load as load_cellpose

        labels = load_cellpose(folder, folder / "cellpose")[0](image, diameter_px=diameter_px)
    tifffile.imwrite(out, np.asarray(labels, np.int32), compression="zlib")
    out.with_suffix(".json").write_text(json.dumps(lines))


if __name__ == "__main__":
    main()
