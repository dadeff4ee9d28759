"""TensorBoard's view of a run: the values of `log.csv`, under the same names."""

from __future__ import annotations

from pathlib import Path

from cellwright.core.errors import RecipeError
from cellwright.training.log import Row


def check_tensorboard() -> None:
    """Raise `RecipeError` where the package is missing."""
    try:
        import torch.utils.tensorboard.writer  # noqa: F401 - whether it can be imported is the question
    except ImportError as error:
        raise RecipeError(
            "TensorBoard is not installed",
            where="train.tensorboard",
            got=str(error),
            remedy="pip install 'cellwright[tensorboard]', or set train.tensorboard to false",
        ) from error


class TensorBoardMirror:
    """Writes event files below ``folder``; what an interrupted run wrote there after ``step`` is hidden.

    Raises `RecipeError` where the package is missing.
    """

    def __init__(self, folder: Path, step: int) -> None:
        check_tensorboard()
        from torch.utils.tensorboard.writer import SummaryWriter

        self._writer = SummaryWriter(str(folder), purge_step=step + 1 if step else None)

    def add(self, step: int, values: Row) -> None:
        """One scalar a value; an absent one is left out."""
        for name, value in values.items():
            if value is not None:
                self._writer.add_scalar(name, value, step)

    def flush(self) -> None:
        """Write what is in memory."""
        self._writer.flush()

    def close(self) -> None:
        """Write what is in memory, and the end."""
        self._writer.close()
