"""``cellwright measure``: one table of all objects."""

from __future__ import annotations

from cellwright.api.measure import MeasurePlan
from cellwright.cli.console import PLAIN, Common
from cellwright.cli.shown import skipped
from cellwright.core.text import count


def measure(plan: MeasurePlan, *, common: Common = PLAIN) -> int:
    """Show how many objects were measured; the exit code is 3 if images were omitted."""
    from cellwright.api.measure import run

    screen = common.screen(plan)
    if (measured := run(plan, screen, dry_run=common.dry_run)) is None:
        return 0
    n_objects, images = len(measured.table), count(measured.n_images, "image")
    values = {"out": str(plan.out), "objects": n_objects, "images": measured.n_images}
    screen.result(f"{count(n_objects, 'object')} in {images}: {plan.out}", values)
    return skipped(screen, measured.failures, "measured")
