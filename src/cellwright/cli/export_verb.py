"""``cellwright export``: predictions in another format."""

from __future__ import annotations

from cellwright.api.export import ExportPlan
from cellwright.cli.console import PLAIN, Common
from cellwright.cli.shown import skipped

SHOWN_PATHS = 10


def export(plan: ExportPlan, *, common: Common = PLAIN) -> int:
    """Show the first files written, and the numbers of files and objects; the exit code is 3 if images were omitted."""
    from cellwright.api.export import run

    screen = common.screen(plan)
    if (exported := run(plan, screen, dry_run=common.dry_run)) is None:
        return 0
    values = {"out": [str(path) for path in exported.paths], "objects": exported.n_objects, "images": exported.n_images}
    screen.result("\n".join([*map(str, exported.paths[:SHOWN_PATHS]), exported.text]), values)
    return skipped(screen, exported.failures, "exported")
