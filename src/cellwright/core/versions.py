"""Which versions of Python and of packages a result was made with."""

from __future__ import annotations

import functools
import sys
from collections.abc import Sequence
from importlib import metadata

PACKAGES = ("cellwright", "torch", "torchvision", "openvino", "numpy", "scipy", "opencv-python-headless", "safetensors")
# What decides the bits of a prediction or an evaluation.
_MAIN = ("cellwright", "torch", "openvino", "numpy", "scipy", "opencv-python-headless")


@functools.cache
def version_of(package: str) -> str | None:
    """The version of an installed package, or None."""
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def versions(packages: Sequence[str] = _MAIN) -> dict[str, str]:
    """Python and the packages that are installed."""
    found = {name: version for name in packages if (version := version_of(name)) is not None}
    return {"python": sys.version.split()[0], **found}
