"""Where weights come from: the models in the box, and what ``model.init`` and ``cellwright model import`` name."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from cellwright.core.errors import ModelError
from cellwright.models.weights.foreign import read_foreign
from cellwright.models.weights.foreign_names import Framework, framework_of

FILES = (".pth", ".pt", ".pkl", ".safetensors")
# Models in the box: the folders of the package's ``weights/``.
SHIPPED = ("nuclei",)
SHIPPED_ROOT = Path(__file__).parents[2] / "weights"
# What torchvision has of our family; its other models are refused before they are downloaded.
_TORCHVISION_FAMILIES = ("resnet", "resnext", "wide_resnet", "maskrcnn")


@dataclass(frozen=True)
class Weights:
    """Tensors under their framework's names. ``origin`` says where they are from, without the folders of a machine."""

    tensors: dict[str, Tensor]
    framework: Framework
    origin: str


def is_foreign(name: str) -> bool:
    """Whether ``name`` means weights of other frameworks (``torchvision:...``, ``detectron2:...``, or a file)."""
    return name.partition(":")[0] in ("torchvision", "detectron2") or Path(name).suffix in FILES


def shipped_model(name: Path | str) -> Path | None:
    """The folder of the model in the box called ``name``; None for any other name. It is only read."""
    return SHIPPED_ROOT / str(name) if str(name) in SHIPPED else None


def find_weights(name: str) -> Weights:
    """The weights of ``torchvision:NAME``, ``torchvision:FILE``, ``detectron2:FILE`` or a bare file.

    NAME is one of torchvision's (``resnet50``, ``maskrcnn_resnet50_fpn_v2``), with ``:VERSION`` for others than its
    default; it is downloaded once, by torchvision itself. Caffe2's names count as Detectron2's.

    Raises:
        ModelError: nothing there, nothing known in it, or another framework's names than were said.
    """
    scheme, colon, rest = name.partition(":")
    path = Path(rest if colon and scheme in ("torchvision", "detectron2") else name)
    if scheme == "torchvision" and path.suffix not in FILES:
        return Weights(_torchvision_weights(rest), "torchvision", f"torchvision's {rest}")
    if scheme == "detectron2" and rest.startswith("//"):
        remedy = "download the file from Detectron2's model zoo, and name it: detectron2:FILE.pkl"
        raise ModelError("Detectron2's weights are read from a file", got=name, remedy=remedy)
    tensors = read_foreign(path)
    framework = framework_of(tensors)
    if framework is None:
        raise ModelError(
            "no tensor of these weights is known",
            where=path,
            got=f"{len(tensors)} tensors, such as {', '.join(sorted(tensors)[:3])}",
            expected="a ResNet or a member of the R-CNN family of torchvision, Detectron2 or Caffe2",
        )
    said = {"torchvision": ("torchvision",), "detectron2": ("detectron2", "caffe2")}.get(scheme if colon else "")
    if said is not None and framework not in said:
        remedy = f"write {framework}:{rest}" if framework == "torchvision" else f"write detectron2:{rest}"
        raise ModelError(
            f"these are not {scheme}'s names",
            where=path,
            got=f"names of {framework}",
            remedy="name the model's folder instead" if framework == "cellwright" else remedy,
        )
    return Weights(tensors, framework, f"{path.name} ({framework}, sha256 {_digest(path)})")


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()[:16]


def _torchvision_weights(name: str) -> dict[str, Tensor]:
    from torchvision.models import get_model_weights, list_models

    model, _, version = name.partition(":")
    known = [one for one in list_models() if one.startswith(_TORCHVISION_FAMILIES)]
    if model not in known:
        raise ModelError("torchvision has no such weights", got=name, expected=f"a file, or one of {', '.join(known)}")
    versions = get_model_weights(model)
    if version not in ("", *versions.__members__):
        raise ModelError("torchvision has no such version", got=name, expected=", ".join(versions.__members__))
    weights = versions[version or "DEFAULT"]
    try:
        return dict(weights.get_state_dict(progress=False, check_hash=True))
    except (OSError, RuntimeError) as error:
        raise ModelError(
            "torchvision's weights cannot be downloaded",
            where=name,
            got=str(error),
            remedy=f"download {weights.url} elsewhere, and name the file: torchvision:FILE.pth",
        ) from error
