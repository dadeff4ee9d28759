"""A model is a folder: ``weights.safetensors``, ``model.json`` and a model card, ``README.md``.

Written file by file, each whole or absent, ``model.json`` last: a folder without it is no model. Loading is strict.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pydantic import ValidationError
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from cellwright.config.recipe import Recipe
from cellwright.core.errors import ModelError
from cellwright.core.files import atomic_path, read_json, write_json, write_text
from cellwright.models.build import build_network
from cellwright.models.dense.dense import DenseNetwork
from cellwright.models.dense.encoders import TimmUNet, published_weights
from cellwright.models.rcnn.mask_rcnn import MaskRCNN
from cellwright.models.weights.foreign import LoadReport, TensorRecord, load_foreign
from cellwright.models.weights.sources import find_weights, is_foreign, shipped_model
from cellwright.models.weights.tensor_files import save_tensors

SCHEMA_VERSION = 1
WEIGHTS, INFO, CARD = "weights.safetensors", "model.json", "README.md"
_REINSTALL = "install cellwright again, or name another model: a model folder, or a run"


@dataclass(frozen=True, kw_only=True)
class ModelInfo:
    """What ``model.json`` says.

    Attributes:
        kind: model family, the recipe's ``model.kind``.
        recipe: the resolved recipe as plain values.
        class_names: one name a class, in the order of the class ids.
        normalisation: the recipe's ``input`` section again, for tools that read no recipes.
        thresholds: found by ``tune``, else empty: ``score/<class>`` (raw score, before calibration) and
            ``min_area_px/<class>``. A class without an entry keeps the recipe's.
        calibration: knots ``scores`` and ``expected_iou`` of the lines that turn raw scores into the IoU to expect, or
            None.
        tuned_on: where they come from, or None: ``split``, ``metric``, ``views`` (those that the images were seen in,
            where not as they are) and ``images``, a digest of the objects of each image, so that figures on the same
            images can be told.
        data_licence: licence of the training data; empty where it is not known.
        origin: where imported weights come from (file and digest, no folders); empty where they were trained here.
        version: of cellwright that wrote the folder.
        git_hash: of the code, or None outside a checkout.
        metrics: names and values on the validation split.
    """

    kind: str
    recipe: dict[str, Any]
    class_names: tuple[str, ...]
    normalisation: dict[str, Any]
    thresholds: dict[str, float] = field(default_factory=dict)
    calibration: dict[str, Any] | None = None
    tuned_on: dict[str, Any] | None = None
    data_licence: str = ""
    origin: str = ""
    version: str = ""
    git_hash: str | None = None
    metrics: dict[str, float] = field(default_factory=dict)


def save_model(folder: Path | str, weights: Mapping[str, Tensor], info: ModelInfo) -> Path:
    """Write a model folder; files of a model that is there are replaced one by one. Returns the folder.

    Raises:
        OutputError: the folder cannot be written, or the disk is full.
    """
    folder = Path(folder)
    with atomic_path(folder / WEIGHTS) as path:
        save_tensors(path, weights)
    write_text(folder / CARD, model_card(info))
    write_json(folder / INFO, {"schema_version": SCHEMA_VERSION, **dataclasses.asdict(info)})
    return folder


def read_model_info(folder: Path | str, *, kind: str | None = None) -> ModelInfo:
    """``model.json`` of a model folder.

    Args:
        folder: the model folder, or a run folder (its ``model/``).
        kind: the family that is expected; None takes any.

    Raises:
        ModelError: no model there, of a newer schema, with fields missing or unknown, or of another kind.
    """
    folder = model_folder(folder)
    content = read_json(folder / INFO)
    found = content.get("schema_version") if isinstance(content, dict) else None
    if found != SCHEMA_VERSION:
        raise ModelError(
            "this model folder has another schema version",
            where=folder / INFO,
            got=found,
            expected=SCHEMA_VERSION,
            remedy="load it with the cellwright version that wrote it",
        )
    values = {key: value for key, value in content.items() if key != "schema_version"}
    known = {f.name for f in dataclasses.fields(ModelInfo)}
    required = {"kind", "recipe", "class_names", "normalisation"}
    if not required <= set(values) <= known:
        problem = sorted(required - set(values)) or sorted(set(values) - known)
        raise ModelError(
            "fields of this model folder are missing or unknown",
            where=folder / INFO,
            got=problem,
            remedy="save the model again with this version of cellwright",
        )
    info = ModelInfo(**{**values, "class_names": tuple(values["class_names"])})
    if kind is not None and info.kind != kind:
        raise ModelError(
            f"this model folder holds a {info.kind!r} model, not a {kind!r} one",
            where=folder,
            got=info.kind,
            expected=kind,
            remedy=f"name a folder of kind {kind!r}, or use a recipe with model.kind {info.kind!r}",
        )
    return info


def model_folder(path: Path | str) -> Path:
    """``path`` or its ``model/``, whichever holds ``model.json``, or the folder of a model in the box.

    Raises:
        ModelError: there is no model.
    """
    shipped = shipped_model(path)
    path = Path(path)
    for folder in (path, path / "model") if shipped is None else (shipped,):
        if (folder / INFO).is_file():
            return folder
    if shipped is not None:
        raise ModelError("this model is not in the installed package", where=shipped, got=str(path), remedy=_REINSTALL)
    raise ModelError(
        "no model here", where=path, expected=f"a folder with {INFO}, or a run with model/{INFO}",
        remedy="check the path; a run has a model once its first checkpoint is written",
    )  # fmt: skip


def read_weights(folder: Path | str) -> dict[str, Tensor]:
    """The tensors of a model or run folder as they are stored, on the CPU; ``ModelError`` where they cannot be read.

    A network that they are loaded into is float32, whatever the precision on disk.
    """
    path = model_folder(folder) / WEIGHTS
    try:
        return load_file(path)
    except (OSError, SafetensorError) as error:
        remedy = None if shipped_model(folder) is None else _REINSTALL
        raise ModelError(
            "the weights of this model cannot be read", where=path, got=str(error), remedy=remedy
        ) from error


def in_half_precision(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Floating-point tensors as float16: half the size on disk; counters (integers) stay.

    Raises:
        ModelError: a value lies beyond float16's range of 65504.
    """
    half = {name: one.half() if one.is_floating_point() else one for name, one in weights.items()}
    lost = [name for name, one in half.items() if one.is_floating_point() and not one.isfinite().all()]
    if lost:
        raise ModelError("these weights do not fit half precision", where=lost[0], expected="values up to 65504")
    return half


def load_weights(
    network: nn.Module, weights: Mapping[str, Tensor], *, where: object, remedy: str | None = None
) -> None:
    """Copy ``weights`` into ``network``: exactly its names and shapes, else ``ModelError`` naming the first few."""
    own = network.state_dict()
    problems = [f"{name} is missing" for name in own if name not in weights]
    problems += [f"{name} is unknown" for name in weights if name not in own]
    problems += [
        f"{name} is {tuple(weights[name].shape)}, the recipe makes {tuple(tensor.shape)}"
        for name, tensor in own.items()
        if name in weights and weights[name].shape != tensor.shape
    ]
    if problems:
        problem, got = f"{len(problems)} tensors do not fit the recipe's network", "; ".join(problems[:5])
        raise ModelError(problem, where=where, got=got, remedy=remedy)
    network.load_state_dict(dict(weights), strict=True)


def recipe_of(info: ModelInfo, *, where: object = None) -> Recipe:
    """The recipe of a model, as far as using it goes: how it was trained is history, which newer versions may not read.

    Raises ``ModelError`` naming the first field of ``where`` that is not valid.
    """
    used = {key: value for key, value in info.recipe.items() if key not in ("train", "augment", "data", "evaluate")}
    try:
        return Recipe.model_validate(used)
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(str(part) for part in first["loc"])
        raise ModelError(
            "the recipe in this model folder is not valid",
            where=where,
            got=f"{place}: {first['msg']}",
            remedy="copy the model folder again, or use the version of cellwright that wrote it",
        ) from error


def load_network(folder: Path | str, *, kind: str | None = None) -> tuple[MaskRCNN | DenseNetwork, ModelInfo]:
    """The network of a model or run folder in evaluation mode, on the CPU, and what its ``model.json`` says."""
    place, info = model_folder(folder), read_model_info(folder, kind=kind)
    network = build_network(recipe_of(info, where=place / INFO), len(info.class_names))
    load_weights(network, read_weights(folder), where=place / WEIGHTS)
    network.eval()
    return network, info


def start_from(network: nn.Module, init: str, *, fresh: Sequence[str] = ()) -> LoadReport:
    """Copy the weights that a recipe's ``model.init`` names into a fresh network.

    Args:
        network: changed in place.
        init: ``torchvision:NAME``, ``torchvision:FILE`` or ``detectron2:FILE`` (see ``sources.find_weights``), a model
            in the box (``nuclei``), or a model or run folder; ``timm:NAME`` for a U-Net's encoder of timm.
        fresh: parts (``fpn rpn box_head mask_head point_head mask_scoring``) that keep their random start;
            ``classes``: all layers with a row a class.

    Raises:
        ModelError: nothing there, or tensors that do not fit; the message says which keys or parts.
    """
    if isinstance(network, DenseNetwork):
        return _start_dense(network, init, fresh)
    if not is_foreign(init):
        return load_foreign(network, read_weights(init), "cellwright", fresh=fresh, where=init)
    if ":" not in init:
        if not Path(init).exists():
            raise ModelError("no such weights", where=init, expected="a file, a model folder, or torchvision:NAME")
        remedy = f"say whose weights they are: torchvision:{init} or detectron2:{init}, or name a model's folder"
        raise ModelError("these weights need a framework", got=init, remedy=remedy)
    found = find_weights(init)
    return load_foreign(network, found.tensors, found.framework, fresh=fresh, where=init)


def _start_dense(network: DenseNetwork, init: str, fresh: Sequence[str]) -> LoadReport:
    """The dense family starts from its own models only, tensor by tensor."""
    if init.startswith("timm:") and isinstance(network.unet, TimmUNet):
        return _start_encoder(network, network.unet, init)
    if is_foreign(init) or init.startswith("timm:"):
        expected = "nuclei, or a model or run folder of the dense family"
        raise ModelError("a U-Net cannot start from these weights", where="model.init", got=init, expected=expected)
    prefix = "unet.maps." if "maps" in fresh else None
    if prefix is None:
        _check_same_maps(network, init)
    kept = {name: t for name, t in network.state_dict().items() if prefix and name.startswith(prefix)}
    taken = {name: t for name, t in read_weights(init).items() if not (prefix and name.startswith(prefix))}
    remedy = None if prefix else "where only the maps differ, start them at random: --set model.init_fresh=[maps]"
    load_weights(network, {**kept, **taken}, where=init, remedy=remedy)
    records = [TensorRecord("loaded", name, name, tuple(tensor.shape)) for name, tensor in taken.items()]
    records += [TensorRecord("re-initialised", name, name, tuple(tensor.shape)) for name, tensor in kept.items()]
    return LoadReport(tuple(records))


def _check_same_maps(network: DenseNetwork, init: str) -> None:
    """Maps of two targets may have the same shapes and mean different things."""
    theirs = build_network(recipe_of(read_model_info(init), where=init), 1)
    own = network.target.channels
    if isinstance(theirs, DenseNetwork) and theirs.target.channels != own:
        raise ModelError(
            "these weights predict other maps",
            where=init,
            got=", ".join(theirs.target.channels),
            expected=", ".join(own),
            remedy="start the last layers at random: --set model.init_fresh=[maps]",
        )


def _start_encoder(network: DenseNetwork, unet: TimmUNet, init: str) -> LoadReport:
    """timm's published weights for the encoder; the decoder starts at random."""
    taken = published_weights(unet, init.removeprefix("timm:"))
    load_weights(unet.encoder, taken, where=init, remedy=f"name weights of model.encoder: timm:{unet.name}")
    shapes = {name: tuple(tensor.shape) for name, tensor in network.state_dict().items()}
    found = {f"unet.encoder.{name}": name for name in taken}
    return LoadReport(
        tuple(
            TensorRecord("renamed", found[name], name, shape)
            if name in found
            else TensorRecord("missing", "", name, shape)
            for name, shape in shapes.items()
        )
    )


def model_card(info: ModelInfo) -> str:
    """The README.md of a model folder: what it is, what it was trained on, how good, how to use it."""
    recipe = info.recipe
    metrics = "\n".join(f"| `{name}` | {value:.4g} |" for name, value in info.metrics.items()) or "| none yet | |"
    thresholds = "\n".join(f"- `{name}`: {value:.4g}" for name, value in info.thresholds.items()) or "- defaults"
    tuned = "Thresholds"
    if info.tuned_on is not None:
        split, metric = info.tuned_on["split"], info.tuned_on["metric"]
        tuned = f"Thresholds, tuned on split {split} for {metric}; scores are calibrated to the IoU to expect"
    return f"""# {recipe.get("name", info.kind)}

{recipe.get("description", "")}

- model kind: `{info.kind}`
- classes: {", ".join(info.class_names) or "none"}
- licence of the training data: {info.data_licence or "not known: do not share these weights"}
{_origin(info)}- made by cellwright {info.version or "(version not recorded)"}, code {info.git_hash or "(not recorded)"}

## On validation images

| metric | value |
|---|---|
{metrics}

{tuned}:

{thresholds}

## Use

    cellwright predict IMAGES --model THIS_FOLDER --out RESULT

## Input

```json
{json.dumps(info.normalisation, indent=1)}
```
"""


def _origin(info: ModelInfo) -> str:
    if not info.origin:
        return ""
    return f"- weights: imported from {info.origin}; what their licence allows is yours to check\n"
