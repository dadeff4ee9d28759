"""What is written beside an exported dense network: the rules, ``export.json``, and ``decode.py``, which follows them.

``decode.py`` is `standalone.decode`, copied as it is: from an image to labels with NumPy, SciPy and the network's
runtime. It neither estimates diameters nor sees windows of large images. Needs no torch.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from cellwright.config.conventions import CONVENTIONS
from cellwright.config.recipe import Recipe
from cellwright.core.files import write_text
from cellwright.models.dense.prediction import DensePrediction

PROGRAM = "decode.py"
STANDALONE = Path(__file__).parent / "standalone"
TOLERANCE = 1e-4
"""Largest difference allowed between a runtime and the network, relative to the largest value of the output."""
DECODED = ("flow", "watershed", "semantic")
"""Targets that the program can decode."""


def rules_of_maps(network: DensePrediction) -> dict[str, Any]:
    """For ``export.json``: the names of the maps, in order, and the steps from an image to objects."""
    target, options = network.config.target, network.config.target.model_dump(mode="json", exclude={"kind"})
    classes = [f"class_{index}" for index in range(network.n_classes)] if network.n_classes > 1 else []
    rays = "; rays are px of the maps" if target.kind == "stars" else ""
    decoder = {"target": target.kind, "maps": len(network.target.channels), **options}
    how = f"{PROGRAM} does" if target.kind in DECODED else "docs/models.md describes for this target"
    return {
        "stride": network.stride,
        "channels": [*network.target.channels, *classes],
        "decoder": decoder,
        "steps": [
            "pad images with zeros at the right and bottom to a multiple of stride, run maps, remove the padding, and "
            "resize the maps to the size of the image",
            f"flow channels have no limits{rays}; all other maps are probabilities, and those of classes sum to 1",
            f"convert the maps to objects with the options in decoder, as {how}",
        ],
    }


def why_no_program(recipe: Recipe) -> str | None:
    """Why ``decode.py`` cannot do what cellwright does with a dense model; None if it can."""
    if (kind := getattr(recipe.model, "target", None)) is None or kind.kind not in DECODED:
        return f"it decodes the targets {', '.join(DECODED)}"
    resizes = recipe.input.short_side is not None or recipe.input.scale != 1
    if resizes and CONVENTIONS[recipe.conventions].resize_rule == "detectron2":
        return "it does not resize images as Detectron2 does"
    if recipe.input.diameter_px is not None and recipe.input.resampling != "antialiased":
        return "it resizes images with antialiasing only"
    if recipe.input.missing_channels != "refused":
        return "it does not fill in channels that an image lacks"
    return None


def write_program(folder: Path) -> None:
    """Write ``decode.py``. Raises `OutputError`."""
    write_text(folder / PROGRAM, program())


def program() -> str:
    """The content of ``decode.py``."""
    return (STANDALONE / PROGRAM).read_text(encoding="utf-8")
