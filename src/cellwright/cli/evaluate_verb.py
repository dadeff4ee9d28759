"""``cellwright evaluate``: predictions against ground truth."""

from __future__ import annotations

import math

from cellwright.api.evaluate import EvaluatePlan
from cellwright.cli.console import PLAIN, Common
from cellwright.cli.shown import skipped


def evaluate(plan: EvaluatePlan, *, common: Common = PLAIN) -> int:
    """Show the headline metrics, or those of two predictions side by side, and the notes.

    The exit code is 3 if images were not evaluated.
    """
    from cellwright.api.evaluate import MARKER, run

    screen = common.screen(plan)
    result = run(plan, screen, dry_run=common.dry_run)
    if result is None:
        return 0
    if not result.evaluations:
        return skipped(screen, result.failures, "evaluated")
    if result.comparison is None:
        (evaluation,) = result.evaluations
        rows = [
            (metric, value, _interval(low, high))
            for metric, value, low, high in evaluation.intervals.itertuples(index=False)
        ]
        title = f"{evaluation.name}: {evaluation.report.counts}"
        screen.table(title, ("metric", "value", "95 % interval"), rows)
    else:
        names = [evaluation.name for evaluation in result.evaluations]
        rows = [
            (metric, first, second, difference, _interval(low, high), "-" if math.isnan(p) else f"{p:.4f}")
            for metric, first, second, difference, low, high, p in result.comparison.itertuples(index=False)
        ]
        columns = ("metric", *names, "difference", "95 % interval", "p")
        screen.table(f"{names[1]} compared with {names[0]}", columns, rows)
    for note in sorted(result.notes, key=lambda note: not note.startswith("warning: ")):
        screen.note(note)
    screen.result(f"report: {plan.out / MARKER}", {"out": str(plan.out)})
    return skipped(screen, result.failures, "evaluated")


def _interval(low: float, high: float) -> str:
    """``0.4120 to 0.5631``, or a dash if there are fewer than two images."""
    return "-" if math.isnan(low) else f"{low:.4f} to {high:.4f}"
