"""``cellwright serve``: the local page."""

from __future__ import annotations

from cellwright.cli.console import Common
from cellwright.core.text import count
from cellwright.serve.verb import ServePlan

PLAIN, EMPTY = Common(), ServePlan()


def serve(plan: ServePlan = EMPTY, *, common: Common = PLAIN) -> None:
    """Serve until interrupted, and show what there is."""
    from cellwright.serve.verb import run

    screen = common.screen(plan)

    def announce(url: str) -> None:
        screen.result(f"open {url}", {"url": url})

    if (served := run(plan, screen, announce=announce, dry_run=common.dry_run)) is not None:
        text = f"{count(served.n_images, 'image')}, {served.n_corrected} corrected: {served.folder}"
        values = {"out": str(served.folder), "images": served.n_images, "corrected": served.n_corrected}
        screen.result(text, values)
