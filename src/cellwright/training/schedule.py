"""The learning rate as a pure function of the step: linear warm-up times a decay curve."""

from __future__ import annotations

import math
from dataclasses import dataclass
from fractions import Fraction

from cellwright.config.training import (
    ConstantSchedule,
    CosineSchedule,
    MultiStepSchedule,
    Span,
    StepSchedule,
    TrainConfig,
)
from cellwright.core.errors import RecipeError
from cellwright.core.text import count


@dataclass(frozen=True)
class Timeline:
    """Converts the time spans of a recipe to optimiser steps, in exact fractions.

    Attributes:
        total_steps: length of the whole run, at least 1.
        steps_per_epoch: length of one pass over the training images; not an integer if a batch spans two epochs.
    """

    total_steps: int
    steps_per_epoch: Fraction

    @staticmethod
    def of(config: TrainConfig, n_samples: int) -> Timeline:
        """The timeline for ``n_samples`` (>= 1) images. Raises `RecipeError` if warm-up is as long as the run."""
        per_epoch = Fraction(n_samples, config.batch_size * config.accumulate)
        amount = Fraction(config.length.amount)
        timeline = Timeline(math.ceil(amount * per_epoch if config.length.unit == "epochs" else amount), per_epoch)
        endless = isinstance(config.schedule, ConstantSchedule)
        if config.warmup is not None and timeline.steps(config.warmup) >= timeline.total_steps and not endless:
            raise RecipeError(
                "warm-up is as long as the run, so the schedule never starts",
                where="train.warmup, train.length",
                got=f"warm-up of {config.warmup} in {count(timeline.total_steps, 'step')}",
                remedy="shorten train.warmup (null: none), or lengthen train.length",
            )
        return timeline

    def steps(self, span: Span) -> Fraction:
        """The length of ``span`` in steps."""
        amount = Fraction(span.amount)
        match span.unit:
            case "steps":
                return amount
            case "epochs":
                return amount * self.steps_per_epoch
            case "%":
                return amount * self.total_steps / 100

    def is_due(self, step: int, every: Span) -> bool:
        """Whether a multiple of ``every`` is reached after ``step`` steps."""
        distance = self.steps(every)
        return step > 0 and step // distance > (step - 1) // distance

    def n_due(self, step: int, every: Span) -> int:
        """How many times `is_due` holds after ``step``, and at the end of the run in any case."""
        distance = self.steps(every)
        reached = self.total_steps // distance - step // distance
        return int(reached) + (self.total_steps % distance != 0 and step < self.total_steps)


def learning_rate(config: TrainConfig, step: int, timeline: Timeline) -> float:
    """The learning rate of step ``step`` (0-based).

    Warm-up rises linearly from ``lr * warmup_start_factor`` at step 0, as in Detectron2's `WarmupMultiStepLR`: its
    factor multiplies the decay curve, so the two may overlap. A cosine decays over the steps after warm-up and reaches
    ``lr * final_factor`` at the end of the run.
    """
    warmup_steps = Fraction(0) if config.warmup is None else timeline.steps(config.warmup)
    return config.lr * _warmup_factor(config, step, warmup_steps) * _curve(config, step, warmup_steps, timeline)


def _warmup_factor(config: TrainConfig, step: int, warmup_steps: Fraction) -> float:
    if step >= warmup_steps:
        return 1.0
    done = float(step / warmup_steps)
    return config.warmup_start_factor * (1 - done) + done


def _curve(config: TrainConfig, step: int, warmup_steps: Fraction, timeline: Timeline) -> float:
    match config.schedule:
        case ConstantSchedule():
            return 1.0
        case MultiStepSchedule(milestones=milestones, factor=factor):
            return factor ** sum(step >= timeline.steps(milestone) for milestone in milestones)
        case StepSchedule(every=every, factor=factor):
            return factor ** (step // timeline.steps(every))
        case CosineSchedule(final_factor=final_factor):
            length = max(Fraction(1), timeline.total_steps - warmup_steps)
            done = float(min(Fraction(1), max(Fraction(0), (step - warmup_steps) / length)))
            return final_factor + (1 - final_factor) * 0.5 * (1 + math.cos(math.pi * done))
