"""A dense model as a package for BioImage.IO, the model zoo that QuPath, Fiji, ilastik and others read: spec 0.5.

rdf.yaml            what the model is: inputs, outputs, weights, authors, licence
maps.onnx           the network; maps.pt and architecture.py are the same in PyTorch, with the decoder
decode.py           from an image to labels, as ``export.json`` says; the spec has no place for it
test_input.npy      a drawn image, and test_output.npy, its maps
cover.png, README.md, model_card.md
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml

from cellwright.config.model_dense import UNetConfig
from cellwright.config.recipe import Recipe
from cellwright.core.files import write_bytes, write_png, write_text
from cellwright.core.image import Image
from cellwright.core.instances import Instances
from cellwright.data.network_input import to_network
from cellwright.data.synthetic import FieldLook, draw_field
from cellwright.models.dense.dense import DenseNetwork
from cellwright.models.dense.prediction import RAY_UNIT_PX
from cellwright.models.export.program import PROGRAM, STANDALONE, program, why_no_program
from cellwright.models.export.standalone import unet
from cellwright.models.weights.model_folder import ModelInfo, recipe_of

FORMAT = "0.5.4"
RDF, README, CARD = "rdf.yaml", "README.md", "model_card.md"
ONNX_FILE, STATE, ARCHITECTURE = "maps.onnx", "maps.pt", "architecture.py"
INPUT, OUTPUT, COVER = "test_input.npy", "test_output.npy", "cover.png"
_ORANGE = 230, 159, 0
_PAPERS = {
    "plain": ("Ronneberger et al., U-Net, MICCAI 2015", "10.1007/978-3-319-24574-4_28"),
    "nested": ("Zhou et al., UNet++, DLMIA 2018", "10.1007/978-3-030-00889-5_1"),
    "flow": ("Stringer et al., Cellpose, Nature Methods 2021: the flow field", "10.1038/s41592-020-01018-x"),
    "watershed": ("Caicedo et al., Nature Methods 2019: body and border maps", "10.1038/s41592-019-0612-7"),
    "stars": ("Schmidt et al., StarDist, MICCAI 2018: star-convex polygons", "10.1007/978-3-030-00934-2_30"),
}


@dataclass(frozen=True, kw_only=True)
class Credits:
    """Who made a model, as the package says.

    authors: names, each optionally followed by an institute in brackets. licence: of the weights, as SPDX names it.
    card: the text of the model card. made: when the weights were written.
    """

    authors: tuple[str, ...]
    licence: str
    card: str
    made: datetime


def made_at(weights: Path) -> datetime:
    """When a file was written, to the second."""
    return datetime.fromtimestamp(int(weights.stat().st_mtime), UTC)


def from_card(card: str, name: str) -> tuple[str, ...]:
    """The values of the lines ``- name: value`` of a model card.

    >>> from_card("# Mine\\n- author: A. B. (Place)\\n- author: C. D.", "author")
    ('A. B. (Place)', 'C. D.')
    """
    return tuple(re.findall(rf"^- {re.escape(name)}: *(.*\S)", card, re.MULTILINE))


def cited(card: str) -> list[dict[str, str]]:
    """What the lines ``- cite: text, doi 10.1000/1`` of a model card name.

    >>> cited("- cite: A. B., 2020: the images, doi 10.1000/1")
    [{'text': 'A. B., 2020: the images', 'doi': '10.1000/1'}]
    """
    found = (re.fullmatch(r"(.+?),? doi:? *(10\.\S+)", line) for line in from_card(card, "cite"))
    return [{"text": match[1], "doi": match[2]} for match in found if match is not None]


def not_expressed(info: ModelInfo, recipe: Recipe) -> list[str]:
    """What a user of the package must do, and the spec cannot say; for the terminal and the README."""
    config, lines = recipe.input, []
    if config.diameter_px is not None:
        lines.append(f"resize images so that their objects have a median diameter of {config.diameter_px:g} px")
    elif config.short_side is not None:
        limit = "" if config.max_side is None else f", the long one to at most {config.max_side} px"
        lines.append(f"resize images so that the short side has {config.short_side} px{limit}")
    elif config.scale != 1:
        lines.append(f"resize images by the factor {config.scale:g}")
    if config.background == "dark":
        lines.append("invert images whose background is bright, so that it is dark")
    if config.channels == 3 and len(info.channels) == 1:
        lines.append("repeat a grey channel three times")
    if config.normalise == "percentile":
        lines.append("see the whole image at once, or tiles with its percentiles")
    elif config.full_range is None:
        lines.append("divide integer values by the largest one of their type first")
    lines.append(f"decode the maps to objects{f', with {PROGRAM}' if why_no_program(recipe) is None else ''}")
    return lines


def write_package(folder: Path, network: DenseNetwork, info: ModelInfo, facts: Credits) -> None:
    """Write the package but for ``maps.onnx``, ``export.json`` and ``decode.py``, which must be there.

    The network must be on the CPU, in evaluation mode. Raises `OutputError`.
    """
    recipe = recipe_of(info)
    image, pixels = drawn_input(network, info, recipe)
    with torch.inference_mode():
        images = torch.from_numpy(pixels[None])
        maps = network.compute(images)
        (objects,) = network.detect(images, [image.image_hw], [image.image_hw])
    raw = image.data.transpose(2, 0, 1)[None].astype(np.float32)
    if recipe.input.normalise == "fixed" and recipe.input.full_range is None:
        raw /= _OF_UINT8["full_range"]
    for name, array in ((INPUT, raw), (OUTPUT, maps)):
        np.save(data := BytesIO(), array)
        write_bytes(folder / name, data.getvalue())
    write_png(folder / COVER, cover(image, objects))
    if _config(network).encoder is None:
        write_text(folder / ARCHITECTURE, architecture())
        torch.save(standalone_state(network), data := BytesIO())
        write_bytes(folder / STATE, data.getvalue())
    write_text(folder / CARD, facts.card)
    write_text(folder / README, readme(network, info, recipe, facts))
    text = yaml.safe_dump(description(folder, network, info, facts), sort_keys=False, allow_unicode=True, width=110)
    write_text(folder / RDF, text)


# --- the network in PyTorch -------------------------------------------------------------------------------------------


def architecture() -> str:
    """The content of ``architecture.py``: the network, then the decoder."""
    return (STANDALONE / "unet.py").read_text(encoding="utf-8") + "\n\n" + program()


def standalone_options(network: DenseNetwork) -> dict[str, Any]:
    """The arguments with which `standalone.unet.UNet` is this network."""
    config = _config(network)
    return {
        "in_channels": network.unet.in_channels,
        "channels": list(network.target.channels),
        "n_classes": network.n_classes if network.n_classes > 1 else 0,
        "width": config.width,
        "depth": config.depth,
        "residual": config.style == "residual",
        "batch_norm": config.norm == "batch_norm",
        "nested": config.skips == "nested",
    }


def _config(network: DenseNetwork) -> UNetConfig:
    assert isinstance(network.config, UNetConfig)  # networks of other tools are refused
    return network.config


def standalone_state(network: DenseNetwork) -> dict[str, torch.Tensor]:
    """The state of `standalone.unet.UNet`: without the maps of deep supervision."""
    assert unet.RAY_UNIT_PX == RAY_UNIT_PX
    last, state = list(network.unet.maps.named_children())[-1][0], {}
    for name, tensor in network.unet.state_dict().items():
        own = name.replace(f"maps.{last}.", "maps.") if name.startswith("maps.") else name
        if own != name or not name.startswith("maps."):
            state[own] = tensor.detach().float().clone() if tensor.is_floating_point() else tensor.clone()
    return state


# --- what is drawn ----------------------------------------------------------------------------------------------------


def smallest_side(network: DenseNetwork) -> int:
    """Of an image, px: a small but sensible size."""
    return -(-64 // network.stride) * network.stride


def drawn_input(network: DenseNetwork, info: ModelInfo, recipe: Recipe) -> tuple[Image, np.ndarray]:
    """A drawn image (H, W, C) with the channels of the network, and its input (C, H, W) float32, without resizing."""
    side = -(-256 // network.stride) * network.stride
    stained = recipe.input.channels == 3 and len(info.channels) != 1
    look = FieldLook(stain="he" if stained else "fluorescence", diameter_px=recipe.input.diameter_px or 24)
    image, _ = draw_field(3, (side, side), round((side / look.diameter_px) ** 2 / 3), look)
    data = image.data if stained else np.repeat(image.data, recipe.input.channels, axis=2)
    image = Image.from_array(np.ascontiguousarray(data))
    config = recipe.input if recipe.input.full_range is not None else recipe.input.model_copy(update=_OF_UINT8)
    return image, to_network(image, config)


_OF_UINT8 = {"full_range": 255.0}


def cover(image: Image, objects: Instances) -> np.ndarray:
    """The image, and beside it the image with the outlines of the objects, uint8 (H, 2 W, 3)."""
    left = np.repeat(image.data[:, :, :1], 3, axis=2) if image.data.shape[2] != 3 else image.data
    labels, right = objects.masks.to_label_map(), left.copy()
    inner = np.pad(labels, 1, mode="edge")
    same = [inner[1 + y : inner.shape[0] - 1 + y, 1 + x : inner.shape[1] - 1 + x] == labels for y, x in _SIDES]
    right[(labels > 0) & ~np.all(same, axis=0)] = _ORANGE
    return np.concatenate([left, right], axis=1)


_SIDES = (0, 1), (1, 0), (0, -1), (-1, 0)


# --- what is said -----------------------------------------------------------------------------------------------------


def description(folder: Path, network: DenseNetwork, info: ModelInfo, facts: Credits) -> dict[str, Any]:
    """The content of ``rdf.yaml``; the other files must be in the folder."""
    recipe = recipe_of(info)

    def file(name: str) -> dict[str, Any]:
        return {"source": name, "sha256": hashlib.sha256((folder / name).read_bytes()).hexdigest()}

    onnx = file(ONNX_FILE) | {"opset_version": _opset()}
    weights: dict[str, Any] = {"onnx": onnx}
    if (folder / STATE).is_file():
        version = torch.__version__.partition("+")[0]
        code = file(ARCHITECTURE) | {"callable": "UNet", "kwargs": standalone_options(network)}
        onnx["parent"] = "pytorch_state_dict"
        weights = {"pytorch_state_dict": file(STATE) | {"architecture": code, "pytorch_version": version}, "onnx": onnx}
    attached = [name for name in (PROGRAM, "export.json", CARD) if (folder / name).is_file()]
    about = recipe.description or f"Segments every {' and '.join(info.class_names)} as its own object."
    return {
        "format_version": FORMAT,
        "type": "model",
        "name": _title(recipe),
        "description": f"{about} Made with cellwright {info.version}."[:1024],
        "authors": [_author(name) for name in facts.authors],
        "license": facts.licence,
        "documentation": README,
        "covers": [file(COVER)],
        "tags": _tags(recipe, info),
        "cite": [*_papers(recipe.model), *cited(facts.card)],
        "timestamp": facts.made.isoformat(),
        "inputs": [_input(network, info, recipe, file(INPUT))],
        "outputs": [_output(network, info, recipe, file(OUTPUT))],
        "weights": weights,
        "attachments": [file(name) for name in attached],
    }


def _opset() -> int:
    from cellwright.models.export.onnx import OPSET

    return OPSET


def _title(recipe: Recipe) -> str:
    return " ".join(f"cellwright {re.sub('[^A-Za-z0-9_+() -]', ' ', recipe.name)}".split())[:64]


def _author(name: str) -> dict[str, str]:
    match = re.fullmatch(r"(.*\S)\s*\((.+)\)", name)
    return {"name": name} if match is None else {"name": match[1], "affiliation": match[2]}


def _tags(recipe: Recipe, info: ModelInfo) -> list[str]:
    target = getattr(recipe.model, "target", None)
    words = ["instance-segmentation", "2d", "unet", "cellwright", target.kind if target else "", *info.class_names]
    return [word for word in dict.fromkeys(words) if word]


def _papers(config: Any) -> list[dict[str, str]]:
    assert isinstance(config, UNetConfig)
    cited = [_PAPERS[name] for name in (config.skips, config.target.kind) if name in _PAPERS]
    return [{"text": text, "doi": doi} for text, doi in cited]


def _channel_names(names: Sequence[str], n: int) -> list[str]:
    if len(names) == n:
        return list(names)
    return [f"{names[0] if len(names) == 1 else 'channel'}_{k + 1}" for k in range(n)]


def _space(info: ModelInfo, recipe: Recipe) -> dict[str, Any]:
    """The pixel size of the network's input, where it is one."""
    if info.pixel_size_um is None or recipe.input.diameter_px is not None or recipe.input.short_side is not None:
        return {}
    return {"unit": "micrometer", "scale": round(info.pixel_size_um / recipe.input.scale, 6)}


def _input(network: DenseNetwork, info: ModelInfo, recipe: Recipe, test: dict[str, Any]) -> dict[str, Any]:
    # No halo: programs would add mirrored pixels around the image for it, and give other objects at the border.
    size = {"min": smallest_side(network), "step": network.stride}
    space = {"type": "space", "size": size, "concatenable": False, **_space(info, recipe)}
    diameter = recipe.input.diameter_px
    about = "" if diameter is None else f", resized so that objects are {diameter:g} px wide (see README.md)"
    return {
        "id": "image",
        "description": f"image{about}",
        "axes": [
            {"type": "batch"},
            {"type": "channel", "channel_names": _channel_names(info.channels, network.unet.in_channels)},
            {**space, "id": "y"},
            {**space, "id": "x", "size": dict(size)},
        ],
        "data": {"type": "float32"},
        "test_tensor": test,
        "preprocessing": [preprocessing(recipe)],
    }


def preprocessing(recipe: Recipe) -> dict[str, Any]:
    """How pixels become the network's input, as the spec says it."""
    config = recipe.input
    if config.normalise == "percentile":
        low, high = config.percentiles
        axes = ["channel", "y", "x"] if config.percentiles_of == "image" else ["y", "x"]
        # As small as can be: cellwright adds nothing to the range.
        options = {"axes": axes, "min_percentile": low, "max_percentile": high, "eps": 1e-10}
        return {"id": "scale_range", "kwargs": options}
    full = config.full_range or 1.0
    gain = [1 / (full * std) for std in config.std]
    offset = [-mean / std for mean, std in zip(config.mean, config.std, strict=True)]
    return {"id": "scale_linear", "kwargs": {"axis": "channel", "gain": gain, "offset": offset}}


def _output(network: DenseNetwork, info: ModelInfo, recipe: Recipe, test: dict[str, Any]) -> dict[str, Any]:
    classes = list(info.class_names) if network.n_classes > 1 else []
    space = {"type": "space", **_space(info, recipe)}
    return {
        "id": "maps",
        "description": f"maps of the target {network.config.target.kind}, from which objects are decoded",
        "axes": [
            {"type": "batch"},
            {"type": "channel", "channel_names": [*network.target.channels, *classes]},
            {**space, "id": "y", "size": {"tensor_id": "image", "axis_id": "y"}},
            {**space, "id": "x", "size": {"tensor_id": "image", "axis_id": "x"}},
        ],
        "data": {"type": "float32"},
        "test_tensor": test,
    }


def readme(network: DenseNetwork, info: ModelInfo, recipe: Recipe, facts: Credits) -> str:
    """The documentation of the package."""
    todo = "\n".join(f"- {line[0].upper()}{line[1:]}." for line in not_expressed(info, recipe))
    metrics = "\n".join(f"| `{name}` | {value:.4g} |" for name, value in info.metrics.items())
    validation = (
        f"On the validation images:\n\n| metric | value |\n|---|---|\n{metrics}" if metrics else "Not validated."
    )
    objects = "The decoder of this target is part of cellwright: convert the maps there."
    if why_no_program(recipe) is None:
        px, meaning = "", ""
        if recipe.input.diameter_px is not None:
            px = " --diameter 30"
            meaning = "30 is the median diameter of the objects of the image, px, which cellwright itself estimates. "
        objects = (
            f"`{PROGRAM}` does everything from an image to labels, resizing included, with numpy, scipy and "
            f"onnxruntime:\n\n    python {PROGRAM} IMAGE LABELS.tif{px}\n\n{meaning}Its `decode` converts maps alone; "
            f"`{ARCHITECTURE}` has the same functions below the network."
        )
    return f"""# {_title(recipe)}

{recipe.description}

The network converts an image to maps: {", ".join(network.target.channels)}. Objects are decoded from them.

## What rdf.yaml cannot say

{todo}

{_differences(network, recipe)}

## From maps to objects

{objects}

`cellwright predict` does all of this with the model from which this package was made.

## Validation

{validation}

To validate it on annotated images of your own: `cellwright evaluate MODEL --data DATASET`.

## Licence

The weights: {facts.licence}. The training data: {info.data_licence or "unknown"}. Credits and limitations: `{CARD}`.
"""


def _differences(network: DenseNetwork, recipe: Recipe) -> str:
    lines = []
    if recipe.input.normalise == "percentile":
        if recipe.input.diameter_px is not None:
            lines.append("cellwright takes the percentiles before it resizes the image, the package after it.")
        if recipe.input.background == "dark":
            lines.append(
                "cellwright inverts images with a bright background, and takes a square root above one without noise."
            )
        lines.append(
            "Where both percentiles are equal, as in an image of one value, cellwright's input is 0 throughout; the "
            "package divides by a tiny number."
        )
    elif recipe.input.full_range is None:
        lines.append("cellwright finds out by the type and the values of an image which value is white.")
    lines.append(
        "cellwright pads images with zeros, after normalising, at the right and the bottom, to a multiple of "
        f"{network.stride} px."
    )
    if network.reach_px is not None:
        lines.append(
            f"The maps of a pixel depend on up to {network.reach_px} px around it, so tiles of a large image must "
            "overlap by twice as much; cellwright itself sees to that."
        )
    return " ".join(lines)
