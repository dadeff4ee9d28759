"""Weights of other frameworks: files, read without running any code, and published weights that are downloaded."""

from __future__ import annotations

import hashlib
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from cellwright.core.errors import ModelError
from cellwright.core.unpickle import BROKEN, Refused, read_pickle
from cellwright.models.weights import cellpose, stardist, torchvision
from cellwright.models.weights.foreign import Framework, framework_of
from cellwright.models.weights.model_folder import FOREIGN_FILES, FRAMEWORKS, check_finite
from cellwright.models.weights.torch_file import read_torch_file

_DOWNLOAD_AGAIN = "download it again, and compare its size with the published one"
_STATE_DICT = "give the file of a state dict, such as torch.save(model.state_dict(), file)"

_STATED = {"torchvision": ("torchvision",), "detectron2": ("detectron2", "caffe2"), "cellpose": ("cellpose",)}


@dataclass(frozen=True)
class Weights:
    """Tensors by their framework's names. ``origin``: where they are from, without local folders.

    Raises `ModelError` if a value is not finite.
    """

    tensors: dict[str, Tensor]
    framework: Framework
    origin: str

    def __post_init__(self) -> None:
        check_finite((name for name, tensor in self.tensors.items() if not tensor.isfinite().all()), self.origin)


def find_weights(name: str) -> Weights:
    """The weights ``torchvision:NAME``, ``torchvision:FILE``, ``detectron2:FILE``, ``cellpose:FILE``,
    ``stardist:FOLDER``, or a file or folder without a prefix.

    NAME is one of torchvision's (``resnet50``, ``maskrcnn_resnet50_fpn_v2``), or ``NAME:VERSION`` for a version other
    than its default; torchvision downloads it once. The prefix ``detectron2`` includes Caffe2 names.

    Raises:
        ModelError: the file cannot be read, none of its tensors is known, or they are of another framework.
    """
    scheme, colon, rest = name.partition(":")
    path = Path(rest if colon and scheme in FRAMEWORKS else name)
    if scheme == "torchvision" and path.suffix not in FOREIGN_FILES:
        return Weights(torchvision.published_weights(rest), "torchvision", f"torchvision's {rest}")
    if scheme == "detectron2" and rest.startswith("//"):
        remedy = "download the file from Detectron2's model zoo, and give it as detectron2:FILE.pkl"
        raise ModelError("Detectron2 weights must be a file", got=name, remedy=remedy)
    if scheme == "stardist" or (not colon and stardist.is_folder(path)):
        file = stardist.weights_file(path)
        return Weights(
            stardist.read_layers(file), "stardist", f"{path.name}/{file.name} (stardist, sha256 {_digest(file)})"
        )
    tensors = read_foreign(path)
    framework = "cellpose" if cellpose.is_cellpose(list(tensors)) else framework_of(tensors)
    if framework is None:
        raise ModelError(
            "no tensor of these weights is known",
            where=path,
            got=f"{len(tensors)} tensors, such as {', '.join(sorted(tensors)[:3])}",
            expected="a ResNet, a network of the R-CNN family of torchvision, Detectron2 or Caffe2, or Cellpose 3",
        )
    stated = _STATED.get(scheme if colon else "")
    if stated is not None and framework not in stated:
        remedy = f"write {'detectron2' if framework == 'caffe2' else framework}:{rest}"
        raise ModelError(
            f"these tensors do not have {scheme}'s names",
            where=path,
            got=f"names of {framework}",
            remedy="give the model folder instead" if framework == "cellwright" else remedy,
        )
    return Weights(tensors, framework, f"{path.name} ({framework}, sha256 {_digest(path)})")


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()[:16]


def read_foreign(path: Path | str) -> dict[str, Tensor]:
    """The tensors of a ``.pth`` (state dict), ``.pkl`` (named arrays) or ``.safetensors`` file, without running code.

    A dict under the key "model", "state_dict" or "blobs" is used if there is one, as frameworks nest their tensors.

    Raises:
        ModelError: the file is missing, damaged, not a file of weights, contains more than data, or no named tensors.
        FormatError: a pickle that is damaged or contains more than data.
    """
    path = Path(path)
    content: Any
    try:
        _check_head(path)
        if path.suffix == ".safetensors":
            return load_file(path)
        if path.suffix == ".pkl":
            with path.open("rb") as file:
                content = read_pickle(file, where=path)
        else:
            content = read_torch_file(path)
    except OSError as error:
        raise ModelError(
            "cannot read these weights",
            where=path,
            got=error.strerror or str(error),
            remedy="check the path and its permissions",
        ) from error
    except Refused as refusal:
        raise ModelError(
            "this file contains more than tensors, and is not loaded",
            where=path,
            got=str(refusal),
            expected="tensors and plain containers",
            remedy="ask its author for a plain state_dict, or save one with the tool that wrote it",
        ) from None
    except (*BROKEN, zipfile.BadZipFile, RuntimeError, SafetensorError) as error:
        # The unpickler reports an unknown instruction as a missing key.
        raise _damaged(path, "not a pickle" if isinstance(error, KeyError) else str(error)) from error
    for key in ("model", "state_dict", "blobs"):
        if isinstance(content, Mapping) and isinstance(content.get(key), Mapping):
            content = content[key]
    if not isinstance(content, Mapping):
        raise ModelError(
            "this file does not contain named tensors", where=path, got=type(content).__name__, remedy=_STATE_DICT
        )
    tensors = {str(name): _tensor(value) for name, value in content.items() if _is_numeric(value)}
    if not tensors:
        keys = f"keys {sorted(map(str, content))[:5]}"
        raise ModelError("this file contains no tensors", where=path, got=keys, remedy=_STATE_DICT)
    # DataParallel puts this before every name.
    wrapped = all(name.startswith("module.") for name in tensors)
    return {name.removeprefix("module.") if wrapped else name: tensor for name, tensor in tensors.items()}


def _check_head(path: Path) -> None:
    """Raise `ModelError` for what a failed download leaves; `OSError` if the file cannot be read."""
    with path.open("rb") as file:
        head = file.read(200)
    if not head:
        raise ModelError("this file is empty", where=path, got="0 bytes", remedy=_DOWNLOAD_AGAIN)
    text = head.lstrip(b"\xef\xbb\xbf \t\r\n").lower()
    if text.startswith((b"<!doctype", b"<html", b"<?xml", b"<head")):
        raise ModelError(
            "this file is a web page, not weights: the download failed",
            where=path,
            got=text.split(b"\n")[0][:40].decode("ascii", "replace"),
            remedy="open the link in a browser, and save the file that it leads to",
        )
    if head.startswith((b"\x89PNG", b"\xff\xd8\xff", b"II*\0", b"MM\0*")):
        raise ModelError("this file is an image, not weights", where=path, remedy="give the file of the weights")
    if text.startswith(b"version https://git-lfs"):
        remedy = "fetch the file itself: git lfs pull"
        raise ModelError("this file is a git-lfs pointer, not the weights", where=path, remedy=remedy)


def _damaged(path: Path, text: str) -> ModelError:
    lines = text.strip().splitlines()
    return ModelError(
        "this file of weights is damaged or truncated, or not a file of weights",
        where=path,
        got=lines[0].partition(". ")[0][:150] if lines else "not a pickle",
        expected="a .pth, .pkl or .safetensors file of tensors",
        remedy=_DOWNLOAD_AGAIN,
    )


def _is_numeric(value: object) -> bool:
    if isinstance(value, Tensor):
        return value.layout == torch.strided and not value.is_meta
    return isinstance(value, np.ndarray) and value.dtype.kind in "fiub"


def _tensor(value: Tensor | np.ndarray) -> Tensor:
    if isinstance(value, Tensor):
        return value
    return torch.from_numpy(np.ascontiguousarray(value, dtype=value.dtype.newbyteorder("=")).reshape(value.shape))
