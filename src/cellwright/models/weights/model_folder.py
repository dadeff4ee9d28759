"""A model folder: ``weights.safetensors``, ``model.json`` and a model card, ``README.md``. Reading needs no torch.

`read_model_info` and `read_arrays` return everything that prediction needs, as plain values and NumPy arrays;
`torch_io` writes the folder and loads its weights into a network. The bundled pretrained models are such folders in the
package.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from pydantic import TypeAdapter, ValidationError
from safetensors import SafetensorError
from safetensors.numpy import load_file

from cellwright.config.recipe import Recipe
from cellwright.core.claim import check_complete
from cellwright.core.errors import ModelError
from cellwright.core.files import atomic_path, read_json, write_json, write_text
from cellwright.core.scores import shown_score
from cellwright.core.text import count

SCHEMA_VERSION = 1
MODEL_FILES = WEIGHTS, INFO, CARD = "weights.safetensors", "model.json", "README.md"
BUNDLED = {"nuclei-fluorescence": "nuclei_fluorescence", "nuclei-stained": "nuclei_stained", "nuclei@1": "nuclei_1"}
"""Names of the bundled pretrained models, and their folders in the package's ``weights/``."""
CHOICES = {"nuclei": ("nuclei-fluorescence", "nuclei-stained")}
"""Names that stand for two bundled models: for stained sections the second, for all other images the first."""
FOREIGN_FILES = (".pth", ".pt", ".pkl", ".safetensors")
"""Endings of files of weights of other frameworks."""
FRAMEWORKS = ("torchvision", "detectron2", "cellpose", "stardist")
"""Prefixes of weights of other frameworks."""
BUNDLED_ROOT = Path(__file__).parents[2] / "weights"
_REINSTALL = "reinstall cellwright, or name another model: a model folder or a run"


@dataclass(frozen=True, kw_only=True)
class ModelInfo:
    """The content of ``model.json``.

    Attributes:
        kind: model family, the recipe's ``model.kind``.
        recipe: the resolved recipe as plain values.
        class_names: one name per class, in the order of the class ids.
        normalisation: the recipe's ``input`` section again, for tools that do not read recipes.
        thresholds: set by ``tune``, else empty: ``score/<class>`` (raw score, before calibration) and
            ``min_area_px/<class>``. A class without an entry has the recipe's threshold.
        calibration: ``scores`` and ``expected_iou``, the knots of a piecewise linear map from raw scores to expected
            IoU; or None.
        tuned_on: what the thresholds were tuned on, or None: ``split``, ``metric``, ``views`` (if test-time
            augmentation was used) and ``images``, a digest of the objects of each image, to detect an evaluation on the
            same images.
        channels: names of the channels that the network was trained on, each with alternatives ("DAPI|Hoechst"); empty
            if unknown.
        values: the values of the training images (`TrainingValues.to_dict`), or None.
        scale: pixels of the network's input per pixel of the training images, their median; None if unknown, or if a
            diameter decides it.
        int8_ranges: least and greatest number in the input of each convolution of a U-Net, by its name, as ``model
            export --to int8`` found them; None if the model has only been used in float32.
        pixel_size_um: of the training images, if all have about the same; None if they differ, or if it is unknown.
        data_licence: licence of the training data; empty if unknown.
        origin: where imported weights are from (file and digest, without folders); empty if they were trained here.
        version: the version of cellwright that wrote the folder.
        git_hash: the commit of the code, or None outside a checkout.
        trained_on: a digest of the objects of each training image, as in ``tuned_on``; empty if they are not known.
        metrics: names and values on the validation split.
    """

    kind: str
    recipe: dict[str, Any]
    class_names: tuple[str, ...]
    normalisation: dict[str, Any]
    thresholds: dict[str, float] = field(default_factory=dict)
    calibration: dict[str, list[float]] | None = None
    tuned_on: dict[str, Any] | None = None
    channels: tuple[str, ...] = ()
    values: dict[str, Any] | None = None
    scale: float | None = None
    int8_ranges: dict[str, tuple[float, float]] | None = None
    pixel_size_um: float | None = None
    data_licence: str = ""
    origin: str = ""
    version: str = ""
    git_hash: str | None = None
    trained_on: tuple[str, ...] = ()
    metrics: dict[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class _TunedOn:
    """The content of `ModelInfo.tuned_on`."""

    split: str
    metric: str
    views: str | None = None
    images: tuple[str, ...] = ()


def bundled_model(name: Path | str) -> Path | None:
    """The folder of the bundled pretrained model of this name; None for any other name. It is only read."""
    return BUNDLED_ROOT / BUNDLED[str(name)] if str(name) in BUNDLED else None


def is_foreign(name: str) -> bool:
    """Whether ``name`` stands for weights of another framework: ``torchvision:...``, ``cellpose:...``, or a file."""
    if name.partition(":")[0] in FRAMEWORKS or Path(name).suffix in FOREIGN_FILES:
        return True
    path = Path(name)
    if finds_nuclei(name) or (path / INFO).exists() or (path / "model" / INFO).exists():
        return False
    return (
        path.is_file() or (path / "config.json").is_file()
    )  # Cellpose's files have no ending, StarDist's are a folder


def finds_nuclei(name: Path | str) -> bool:
    """Whether this is the name of a bundled model, all of which find nuclei and nothing else."""
    return str(name) in BUNDLED or str(name) in CHOICES


def model_folder(path: Path | str) -> Path:
    """The folder with ``model.json``: ``path`` itself, its ``model/``, or a bundled model.

    Raises:
        ModelError: there is no model.
    """
    if str(path) in CHOICES:
        raise ModelError(
            f"{path} is two models, of which each image gets one",
            expected=" or ".join(CHOICES[str(path)]),
            remedy="name one of the two here",
        )
    bundled = bundled_model(path)
    path = Path(path)
    for folder in (path, path / "model") if bundled is None else (bundled,):
        if (folder / INFO).is_file():
            check_complete(folder)
            return folder
    if bundled is not None:
        raise ModelError(
            "the installed package does not contain this model",
            where=bundled,
            got=str(path),
            remedy=_REINSTALL,
        )
    raise ModelError(
        "no model here", where=path, expected=f"a folder with {INFO}, or a run with model/{INFO}",
        remedy="check the path; a run has a model after its first checkpoint",
    )  # fmt: skip


def read_model_info(folder: Path | str, *, kind: str | None = None) -> ModelInfo:
    """``model.json`` of a model folder.

    Args:
        folder: a model folder, a run (its ``model/``), or the name of a bundled model.
        kind: the model family that is expected; None accepts any.

    Raises:
        ModelError: there is no model, its schema is newer, fields are missing or unknown, or it is of another family.
    """
    folder = model_folder(folder)
    content = read_json(folder / INFO)
    version = content.get("schema_version") if isinstance(content, dict) else None
    if version != SCHEMA_VERSION:
        raise ModelError(
            "this model folder has another schema version",
            where=folder / INFO,
            got=version,
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
    try:
        info = TypeAdapter(ModelInfo).validate_python(values)
        TypeAdapter(_TunedOn | None).validate_python(info.tuned_on)
    except ValidationError as error:
        raise ModelError(
            "a field of this model folder is invalid",
            where=folder / INFO,
            got=_first_error(error),
            remedy="copy the model folder again, or use the version of cellwright that wrote it",
        ) from error
    if kind is not None and info.kind != kind:
        raise ModelError(
            f"this model folder contains a {info.kind!r} model, not a {kind!r} model",
            where=folder,
            got=info.kind,
            expected=kind,
            remedy=f"give a folder of kind {kind!r}, or use a recipe with model.kind {info.kind!r}",
        )
    return info


def recipe_of(info: ModelInfo, *, where: object = None) -> Recipe:
    """The recipe of a model, without the sections on how it was trained, which newer versions need not understand.

    Raises:
        ModelError: a field is invalid; the message names the first one.
    """
    used = {key: value for key, value in info.recipe.items() if key not in ("train", "augment", "data", "evaluate")}
    try:
        return Recipe.model_validate(used)
    except ValidationError as error:
        raise ModelError(
            "the recipe in this model folder is invalid",
            where=where,
            got=_first_error(error),
            remedy="copy the model folder again, or use the version of cellwright that wrote it",
        ) from error


def _first_error(error: ValidationError) -> str:
    first = error.errors()[0]
    return f"{'.'.join(str(part) for part in first['loc'])}: {first['msg']}"


def read_arrays(folder: Path | str) -> dict[str, np.ndarray]:
    """The tensors of a model folder, a run or a bundled model by name, in the precision in which they are stored.

    >>> arrays = read_arrays("nuclei@1")
    >>> arrays["unet.maps.0.weight"].shape, arrays["unet.maps.0.weight"].dtype
    ((3, 16, 1, 1), dtype('float16'))

    Raises:
        ModelError: there is no model, its weights cannot be read, or some are not finite.
    """
    path = model_folder(folder) / WEIGHTS
    try:
        arrays = load_file(path)
    except (OSError, SafetensorError, KeyError, TypeError) as error:
        raise unreadable_weights(folder, error) from error
    check_finite((name for name, array in arrays.items() if not np.isfinite(array).all()), path)
    return arrays


def check_finite(not_finite: Iterable[str], where: object) -> None:
    """Raise `ModelError` if there are tensors with values that are not finite, whose names are given."""
    if names := list(not_finite):
        raise ModelError(
            "these weights contain values that are not finite",
            where=where,
            got=", ".join(names[:5]),
            expected="numbers",
            remedy="copy the file again; if it is complete, its training has diverged",
        )


def unreadable_weights(folder: Path | str, error: Exception) -> ModelError:
    """The error for weights that safetensors cannot read."""
    remedy = "copy the model folder again" if bundled_model(folder) is None else _REINSTALL
    return ModelError(
        "cannot read the weights of this model", where=model_folder(folder) / WEIGHTS, got=str(error), remedy=remedy
    )


def misfit(problems: Sequence[str], *, where: object, remedy: str | None = None) -> ModelError:
    """The error for weights whose names or shapes differ from those of the network; it lists the first five."""
    problem = f"{count(len(problems), 'tensor')} of these weights and of the recipe's network do not match"
    return ModelError(problem, where=where, got="; ".join(problems[:5]), remedy=remedy)


def copy_model(source: Path | str, folder: Path, info: ModelInfo) -> None:
    """Write a model folder with the weights of another model. Raises `OutputError`."""
    with atomic_path(folder / WEIGHTS) as path:
        path.write_bytes((model_folder(source) / WEIGHTS).read_bytes())
    write_info(folder, info)


def write_info(folder: Path, info: ModelInfo) -> None:
    """Write the model card, then ``model.json``: a folder without it is not a model. Raises `OutputError`."""
    write_text(folder / CARD, model_card(info))
    write_json(folder / INFO, {"schema_version": SCHEMA_VERSION, **dataclasses.asdict(info)})


def _threshold_lines(info: ModelInfo) -> list[str]:
    """The thresholds, one line each; those of scores as predictions show them, which is after calibration."""
    lines = []
    for name, value in info.thresholds.items():
        text = f"- `{name}`: {value:.4g}"
        if name.startswith("score/") and info.calibration is not None:
            shown = np.interp(value, info.calibration["scores"], info.calibration["expected_iou"])
            text = f"- `{name}`: {shown_score(float(shown))} ({value:.4g} before calibration)"
        lines.append(text)
    return lines


def model_card(info: ModelInfo) -> str:
    """The README.md of a model folder: what the model is, its training data, its metrics, and how to use it."""
    recipe = info.recipe
    metrics = "\n".join(f"| `{name}` | {value:.4g} |" for name, value in info.metrics.items()) or "| none yet | |"
    thresholds = "\n".join(_threshold_lines(info)) or "- defaults"
    tuned = "Thresholds"
    if info.tuned_on is not None:
        split, metric = info.tuned_on["split"], info.tuned_on["metric"]
        tuned = f"Thresholds, tuned on split {split} for {metric}; a score is the expected overlap (IoU)"
    origin = f"- weights: imported from {info.origin}; check what their licence permits\n" if info.origin else ""
    return f"""# {recipe.get("name", info.kind)}

{recipe.get("description", "")}

- model kind: `{info.kind}`
- classes: {", ".join(info.class_names) or "none"}
- channels: {", ".join(info.channels) or "(not recorded)"}
- licence of the training data: {info.data_licence or "unknown: do not share these weights"}
{origin}- written by cellwright {info.version or "(version not recorded)"}, code {info.git_hash or "(not recorded)"}

## Metrics on the validation images

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
