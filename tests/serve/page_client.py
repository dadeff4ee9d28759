"""A page on a folder, with a client that has its cookie."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from starlette.testclient import TestClient

from cellwright.serve.app import build_app
from cellwright.serve.project import Page, Project
from cellwright.serve.security import Access

HOST = "http://127.0.0.1:8765"


class PageClient(TestClient):
    """The client of a page that was opened by its link. tokens: those that were announced since."""

    page: Page
    access: Access
    tokens: list[str]


@contextmanager
def open_page(source: Path | None, out: Path, *, worker: Any = None, **access: Any) -> Iterator[PageClient]:
    """Serve a folder of images, a dataset, a prediction folder or nothing, as the project ``out``.

    worker: starts the worker of the jobs, see `JobQueue`.
    """
    project = Project(out, roots=[source if source is not None and source.is_dir() else out])
    try:
        if source is not None:
            project.add(source)
        tokens: list[str] = []
        page, granted = Page(project), Access(8765, announce=tokens.append, **access)
        page.start_worker = worker or page.start_worker
        with PageClient(build_app(page, granted), base_url=HOST, headers={"origin": HOST}) as client:
            client.page, client.access, client.tokens = page, granted, tokens
            client.get(f"/?token={granted.token}")
            yield client
    finally:
        project.close()
