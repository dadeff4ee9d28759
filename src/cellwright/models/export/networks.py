"""What is exported of a network: its graphs, and how to run them. One case per family."""

from __future__ import annotations

from typing import Any

from cellwright.core.errors import UsageError
from cellwright.models.contract import Network
from cellwright.models.dense.dense import DenseNetwork
from cellwright.models.export import dense, rcnn
from cellwright.models.export.onnx import Graph
from cellwright.models.rcnn.mask_rcnn import MaskRCNN


def graphs_of(network: Network) -> list[Graph]:
    """The parts of a network that become one file each. Raises `UsageError` for a network of another family."""
    match network:
        case MaskRCNN():
            return rcnn.graphs_of(network)
        case DenseNetwork():
            return dense.graphs_of(network)
    raise _unknown(network)


def rules_of(network: Network) -> dict[str, Any]:
    """For ``export.json``: the numbers that inference needs besides the graphs, and the ``steps`` to run them.

    Raises:
        UsageError: a network of another family.
    """
    match network:
        case MaskRCNN():
            return rcnn.rules_of(network)
        case DenseNetwork():
            return dense.rules_of(network)
    raise _unknown(network)


def _unknown(network: Network) -> UsageError:
    return UsageError(
        "networks of this kind cannot be exported",
        got=type(network).__name__,
        remedy="export a model of the R-CNN family or a U-Net",
    )
