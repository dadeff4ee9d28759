"""Networks of other tools of the dense family, which bring their recipe along: Cellpose and StarDist.

`read_peer` gives everything that importing and fine-tuning need; `load_peer` copies the weights, strictly.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from cellwright.core.errors import ModelError
from cellwright.core.files import read_json
from cellwright.models.dense.dense import DenseNetwork
from cellwright.models.weights import cellpose, stardist
from cellwright.models.weights.foreign import LoadReport, TensorRecord
from cellwright.models.weights.sources import Weights
from cellwright.models.weights.torch_io import load_weights

TITLES = {"cellpose": "Cellpose 3", "stardist": "StarDist 2-D"}


@dataclass(frozen=True)
class Peer:
    """A network of another tool.

    values: of the recipe that fits. theirs: {our name: their name}. unused: {their name: why}. channels: what the
    channels of its input show, as in ``model.json``.
    """

    weights: Weights
    values: dict[str, Any]
    theirs: dict[str, str]
    unused: dict[str, str]
    channels: tuple[str, ...] = ()

    @property
    def tensors(self) -> dict[str, Tensor]:
        """By our names."""
        return {ours: self.weights.tensors[theirs] for ours, theirs in self.theirs.items()}


def is_peer(weights: Weights) -> bool:
    """Whether these weights bring their recipe along."""
    return weights.framework in TITLES


def read_peer(weights: Weights, where: object) -> Peer:
    """A network of Cellpose or StarDist. where: the file or folder, with or without the name of the tool.

    Raises `ModelError` if it is none that can be used, with the reason.
    """
    if weights.framework == "stardist":
        folder = Path(str(where).removeprefix("stardist:"))
        values, names = (
            stardist.recipe_values(folder),
            stardist.our_names(weights.tensors, read_json(folder / stardist.CONFIG)),
        )
    else:
        values, names = cellpose.recipe_values(weights.tensors, where), cellpose.our_names(list(weights.tensors))
    theirs, unused, unknown = {}, {}, []
    for name, ours in names.items():
        if ours is not None:
            theirs[ours] = name
        elif name in cellpose.DIAMETERS:
            unused[name] = cellpose.DIAMETERS[name]
        else:
            unknown.append(name)
    if unknown:
        raise ModelError(
            "these weights contain unknown tensors",
            where=where,
            got=", ".join(unknown[:5]),
            expected=f"only those of {TITLES[weights.framework]}'s U-Net",
        )
    is_cyto = weights.framework == "cellpose" and values["input"]["channels"] == len(cellpose.CHANNELS)
    channels = cellpose.CHANNELS if is_cyto else ()
    return Peer(weights, values, theirs, unused, channels)


def load_peer(network: DenseNetwork, peer: Peer, *, fresh: Sequence[str] = (), where: object) -> LoadReport:
    """Copy all weights into a network; the last layers keep theirs if ``fresh`` contains "maps".

    Raises `ModelError` for other names or shapes.
    """
    kind = peer.values["model"]["kind"]
    if network.config.kind != kind:
        raise ModelError(
            f"weights of {TITLES[peer.weights.framework]} need a recipe for its network",
            where=where,
            got=f"model.kind: {network.config.kind}",
            expected=kind,
            remedy=f"train with the recipe {kind}/finetune",
        )
    own = network.state_dict()
    kept = {name: tensor for name, tensor in own.items() if "maps" in fresh and name.startswith("unet.maps.")}
    taken = {name: tensor for name, tensor in peer.tensors.items() if name not in kept}
    remedy = "use the recipe of this network: cellwright model inspect shows its keys"
    load_weights(network, taken | kept, where=where, remedy=remedy)
    return LoadReport(tuple(_records(peer, taken, kept)))


def _records(peer: Peer, taken: Mapping[str, Tensor], kept: Mapping[str, Tensor]) -> list[TensorRecord]:
    shape = {name: tuple(tensor.shape) for name, tensor in peer.weights.tensors.items()}
    records = [TensorRecord("renamed", peer.theirs[name], name, tuple(tensor.shape)) for name, tensor in taken.items()]
    records += [TensorRecord("re-initialised", "", name, tuple(tensor.shape)) for name, tensor in kept.items()]
    return records + [TensorRecord("unused", name, "", shape[name], why) for name, why in peer.unused.items()]
