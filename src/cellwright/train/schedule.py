"""The learning rate as a pure function of the step: linear warm-up times a falling curve."""

from __future__ import annotations

import math

from cellwright.config.train_schema import TrainConfig


def learning_rate(config: TrainConfig, step: int, total_steps: int) -> float:
    """The learning rate of step ``step`` (0-based) in a run of ``total_steps``.

    Warm-up rises linearly from ``lr * warmup_start_factor`` at step 0 to the full curve at step ``warmup_steps``, as
    Detectron2's `WarmupMultiStepLR` does (the factor multiplies the curve, so both may overlap). A cosine falls over
    the steps after warm-up and reaches ``lr * final_factor`` at ``total_steps``.
    """
    return config.lr * _warmup_factor(config, step) * _curve(config, step, total_steps)


def _warmup_factor(config: TrainConfig, step: int) -> float:
    if step >= config.warmup_steps:
        return 1.0
    done = step / config.warmup_steps
    return config.warmup_start_factor * (1 - done) + done


def _curve(config: TrainConfig, step: int, total_steps: int) -> float:
    match config.schedule:
        case "constant":
            return 1.0
        case "multi_step":
            passed = sum(step >= round(share * total_steps) for share in config.milestones)
            return config.decay_factor**passed
        case "cosine":
            length = max(1, total_steps - config.warmup_steps)
            done = min(1.0, max(0.0, (step - config.warmup_steps) / length))
            return config.final_factor + (1 - config.final_factor) * 0.5 * (1 + math.cos(math.pi * done))
