"""Initial weights for training: copies what a recipe's ``model.init`` names into a fresh network."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from torch import nn

from cellwright.config.model_dense import DenseConfig, UNetConfig
from cellwright.core.errors import ModelError
from cellwright.models.dense.cellpose import CHANNELS as CELLPOSE_MAPS
from cellwright.models.dense.dense import DenseNetwork
from cellwright.models.dense.encoders import TimmUNet, published_weights
from cellwright.models.dense.target import target_of
from cellwright.models.weights.foreign import LoadReport, TensorRecord, load_foreign
from cellwright.models.weights.model_folder import is_foreign, read_model_info, recipe_of
from cellwright.models.weights.peers import is_peer, load_peer, read_peer
from cellwright.models.weights.sources import find_weights
from cellwright.models.weights.torch_io import load_weights, read_weights


def start_from(network: nn.Module, init: str, *, fresh: Sequence[str] = ()) -> LoadReport:
    """Copy the weights that ``model.init`` names into a fresh network.

    Args:
        network: modified in place.
        init: ``torchvision:NAME``, ``torchvision:FILE``, ``detectron2:FILE`` or ``cellpose:FILE`` (see
            `sources.find_weights`), a bundled model (``nuclei``), or a model or run folder; ``timm:NAME`` for a U-Net
            with a timm encoder.
        fresh: parts that start at random (``fpn rpn box_head mask_head point_head mask_scoring``; ``maps`` of a U-Net),
            or ``classes``, all layers that depend on the number of classes.

    Raises:
        ModelError: there are no such weights, or they do not fit; the message names the keys or parts.
    """
    if isinstance(network, DenseNetwork):
        if is_foreign(init) and init.partition(":")[0] not in ("torchvision", "detectron2"):
            weights = find_weights(init)
            if is_peer(weights):
                return load_peer(network, read_peer(weights, init), fresh=fresh, where=init)
        return _start_dense(network, init, fresh)
    if not is_foreign(init):
        return load_foreign(network, read_weights(init), "cellwright", fresh=fresh, where=init)
    if ":" not in init:
        if not Path(init).exists():
            raise ModelError("no such weights", where=init, expected="a file, a model folder, or torchvision:NAME")
        remedy = f"add the framework, torchvision:{init} or detectron2:{init}, or give a model folder"
        raise ModelError("the framework of these weights is missing", got=init, remedy=remedy)
    weights = find_weights(init)
    return load_foreign(network, weights.tensors, weights.framework, fresh=fresh, where=init)


def _start_dense(network: DenseNetwork, init: str, fresh: Sequence[str]) -> LoadReport:
    """The dense family starts from its own models, tensor by tensor, or from timm's weights of the encoder."""
    if init.startswith("timm:") and isinstance(network.unet, TimmUNet):
        return _start_encoder(network, network.unet, init)
    if is_foreign(init) or init.startswith("timm:"):
        expected = "nuclei, a model or run folder of the dense family, cellpose:FILE or stardist:FOLDER"
        raise ModelError("a U-Net cannot start from these weights", where="model.init", got=init, expected=expected)
    prefix = "unet.maps." if "maps" in fresh else None
    _check_same_kind(network, init, same_maps=prefix is None)
    kept = {name: tensor for name, tensor in network.state_dict().items() if prefix and name.startswith(prefix)}
    taken = {name: tensor for name, tensor in read_weights(init).items() if not (prefix and name.startswith(prefix))}
    remedy = None if prefix else "if only the maps differ, start them at random: set model.init_fresh=[maps]"
    load_weights(network, {**kept, **taken}, where=init, remedy=remedy)
    records = [TensorRecord("loaded", name, name, tuple(tensor.shape)) for name, tensor in taken.items()]
    records += [TensorRecord("re-initialised", name, name, tuple(tensor.shape)) for name, tensor in kept.items()]
    return LoadReport(tuple(records))


def _check_same_kind(network: DenseNetwork, init: str, *, same_maps: bool) -> None:
    """Maps of two targets may have the same shape and different meanings."""
    model = recipe_of(read_model_info(init), where=init).model
    if not isinstance(model, DenseConfig):
        return  # their tensors do not fit
    own_config = network.config
    if isinstance(model, UNetConfig) and isinstance(own_config, UNetConfig) and model.skips != own_config.skips:
        raise ModelError(
            "these weights are of a U-Net with other skip connections",
            where=init,
            got=f"model.skips: {model.skips}",
            expected=own_config.skips,
            remedy=f"set model.skips={model.skips}, or start from a model with {own_config.skips} skips",
        )
    theirs, own = target_of(model.target).channels, network.target.channels
    if {*theirs, *own} == {*CELLPOSE_MAPS, "body"}:  # one map, two decoders
        return
    if same_maps and theirs != own:
        raise ModelError(
            "these weights predict other maps",
            where=init,
            got=", ".join(theirs),
            expected=", ".join(own),
            remedy="start the last layers at random: set model.init_fresh=[maps]",
        )


def _start_encoder(network: DenseNetwork, unet: TimmUNet, init: str) -> LoadReport:
    """timm's published weights for the encoder; the decoder starts at random."""
    taken = published_weights(unet, init.removeprefix("timm:"))
    load_weights(unet.encoder, taken, where=init, remedy=f"give weights for model.encoder, timm:{unet.name}")
    theirs = {f"unet.encoder.{name}": name for name in taken}
    return LoadReport(
        tuple(
            TensorRecord("renamed", theirs[name], name, tuple(tensor.shape))
            if name in theirs
            else TensorRecord("missing", "", name, tuple(tensor.shape))
            for name, tensor in network.state_dict().items()
        )
    )
