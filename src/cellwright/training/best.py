"""Which evaluation is the best, and when there have been enough of them."""

from __future__ import annotations

import math

from cellwright.config.training import TrainConfig
from cellwright.training.state import Position


def should_fall(metric: str) -> bool:
    """Whether less of it is better, by its name: a loss, an error, a number of mistakes, a share of lost recall."""
    name = metric.partition("/")[0]  # without the class
    return name.startswith(("loss", "errors_", "lost_recall_")) or name.endswith(("_loss", "_error"))


def is_better(metric: str, value: float, best: float | None) -> bool:
    """Whether ``value`` beats ``best``; anything beats no value, and NaN beats nothing but that."""
    if best is None or math.isnan(best):
        return True
    return value < best if should_fall(metric) else value > best


def count_patience(position: Position, metric: str, value: float) -> None:
    """Note the outcome of an evaluation that was due; a metric that is not defined is no improvement.

    Those that ``--max-minutes`` adds do not count: a run must not end earlier because it was interrupted.
    """
    if math.isfinite(value) and is_better(metric, value, position.patience_best):
        position.patience_best, position.patience_spent = value, 0
    else:
        position.patience_spent += 1


def is_out_of_patience(position: Position, config: TrainConfig) -> bool:
    """Whether ``config.patience`` evaluations in a row brought nothing better."""
    return config.patience is not None and position.patience_spent >= config.patience
