"""PyTorch is an extra: what needs it says so in one way."""

from __future__ import annotations

from importlib.util import find_spec

from cellwright.core.errors import UsageError

INSTALL = 'pip install "cellwright[train]"'


def torch_is_installed() -> bool:
    """Whether PyTorch is; it is not imported."""
    return find_spec("torch") is not None


def torch_is_missing(what: str) -> UsageError:
    """The error where PyTorch is needed. what: needs it, such as "training"."""
    return UsageError(f"{what} needs PyTorch, which is not installed", remedy=INSTALL)


def require_torch(what: str) -> None:
    """Raise `torch_is_missing` where it is."""
    if not torch_is_installed():
        raise torch_is_missing(what)
