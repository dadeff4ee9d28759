"""Networks of Cellpose 3 (``cyto3``, ``nuclei``, and those of users): their tensors, and the recipe that fits.

Source: Cellpose 3.1 (BSD-3-Clause), https://github.com/MouseLand/cellpose. A file is a state dict. Besides the weights,
it records the diameter to which objects were resized in training, and the one that the training images had.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor

from cellwright.config.model_dense import CellposeTarget
from cellwright.core.errors import ModelError
from cellwright.models.weights.layout import Rule, translate

_LEAF = r"(?P<leaf>\w+)"
_DOWN, _UP = r"downsample\.down\.res_down_(?P<n>\d)\.", r"upsample\.up\.res_up_(?P<n>\d)\."
_RULES: tuple[Rule, ...] = (
    (rf"{_DOWN}conv\.conv_(?P<k>\d)\.0\.{_LEAF}", "unet.encoder.{n}.convs.{k}.norm.{leaf}", 0),
    (rf"{_DOWN}conv\.conv_(?P<k>\d)\.2\.{_LEAF}", "unet.encoder.{n}.convs.{k}.conv.{leaf}", 0),
    (rf"{_DOWN}proj\.0\.{_LEAF}", "unet.encoder.{n}.shortcut.norm.{leaf}", 0),
    (rf"{_DOWN}proj\.1\.{_LEAF}", "unet.encoder.{n}.shortcut.conv.{leaf}", 0),
    (rf"{_UP}conv\.conv_0\.0\.{_LEAF}", "unet.decoder.{n}.convs.0.norm.{leaf}", 0),
    (rf"{_UP}conv\.conv_0\.2\.{_LEAF}", "unet.decoder.{n}.convs.0.conv.{leaf}", 0),
    (rf"{_UP}conv\.conv_(?P<k>[1-3])\.conv\.0\.{_LEAF}", "unet.decoder.{n}.convs.{k}.norm.{leaf}", 0),
    (rf"{_UP}conv\.conv_(?P<k>[1-3])\.conv\.2\.{_LEAF}", "unet.decoder.{n}.convs.{k}.conv.{leaf}", 0),
    (rf"{_UP}proj\.0\.{_LEAF}", "unet.decoder.{n}.shortcut.norm.{leaf}", 0),
    (rf"{_UP}proj\.1\.{_LEAF}", "unet.decoder.{n}.shortcut.conv.{leaf}", 0),
    (rf"output\.0\.{_LEAF}", "unet.maps.norm.{leaf}", 0),
    (rf"output\.2\.{_LEAF}", "unet.maps.conv.{leaf}", 0),
)
# The linear maps of the style are counted from the second convolution.
_STYLE: Rule = (
    rf"upsample\.up\.res_up_(?P<k>\d)\.conv\.conv_(?P<n>[1-3])\.full\.{_LEAF}",
    "unet.decoder.{k}.styles.{n}.{leaf}",
    1,
)
DIAMETERS = {"diam_mean": "input.diameter_px of the recipe", "diam_labels": "input.default_diameter_px of the recipe"}
"""Tensors that are no weights, and where they are recorded."""
_DIAMETER_PX, _NUCLEI_PX = 30.0, 17.0
CHANNELS = ("cytoplasm|cyto|cells|cell|membrane|actin|phalloidin", "nuclei|nucleus|DAPI|Hoechst|DNA")


def our_names(names: Sequence[str]) -> dict[str, str | None]:
    """Our name of each tensor; None where it is unknown, or no weight."""
    return {name: translate(name, (*_RULES, _STYLE)) for name in names}


def is_cellpose(names: Sequence[str]) -> bool:
    """Whether these are names of a network of Cellpose, of any version."""
    return any(re.match(r"downsample\.down\.res_down_0\.|encoder\.patch_embed\.|W2$", name) for name in names)


def recipe_values(tensors: Mapping[str, Tensor], where: object) -> dict[str, Any]:
    """The values of the recipe that fits these weights; prediction with it equals that of Cellpose.

    Raises:
        ModelError: this is not a network of Cellpose 3 that finds objects.
    """
    first, last = tensors.get("downsample.down.res_down_0.conv.conv_0.2.weight"), tensors.get("output.2.weight")
    if first is None or last is None or first.ndim != 4 or last.ndim != 4:
        sam = "W2" in tensors or any(name.startswith("encoder.") for name in tensors)
        raise ModelError(
            "these weights are of another network of Cellpose",
            where=where,
            got="a transformer, as of Cellpose 4 (SAM)" if sam else "an incomplete or a 3-D network",
            expected="the U-Net of Cellpose 2 and 3, such as cyto3 or nuclei",
        )
    if last.shape[0] != 3:
        raise ModelError(
            "this network of Cellpose does not predict flows",
            where=where,
            got=f"{last.shape[0]} maps",
            expected="3: two components of the flow, and cellprob",
            remedy="networks that restore images cannot be imported",
        )
    mean, labels = (_number(tensors.get(name)) for name in DIAMETERS)
    if str(where).endswith("nucleitorch_0"):  # the file of Cellpose's own model, which says 30
        mean = _NUCLEI_PX
    mean = mean or _DIAMETER_PX
    return {
        "name": "cellpose",
        "description": "A network of Cellpose 3, with its input and its decoder.",
        "input": {
            "channels": first.shape[1],
            "normalise": "percentile",
            "percentiles": (1.0, 99.0),
            "percentiles_of": "channel",
            "diameter_px": mean,
            "default_diameter_px": labels or mean,
            "resampling": "linear",
            "missing_channels": "zeros",
        },
        "model": {"kind": "cellpose", "width": first.shape[0], "target": CellposeTarget().model_dump()},
        "predict": {"score_threshold": 0.0},
    }


def _number(tensor: Tensor | None) -> float | None:
    """The first value, as Python's shortest number that is the same float32; None without one above 0."""
    if tensor is None or tensor.numel() == 0 or not float(tensor.flatten()[0]) > 0:
        return None
    return float(str(tensor.flatten()[0].numpy()))
