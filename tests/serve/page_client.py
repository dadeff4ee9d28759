"""A page on a folder, with a client that has its cookie."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import uvicorn
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


@contextmanager
def serve(out: Path, root: Path, worker: Any) -> Iterator[str]:
    """Serve an empty project to browsers, from a thread of this process; yields the link. root: may be opened."""
    with socket.create_server(("127.0.0.1", 0)) as listening, closing(Project(out, roots=[root])) as project:
        port = listening.getsockname()[1]
        page, access = Page(project), Access(port)
        page.start_worker = worker
        config = uvicorn.Config(build_app(page, access), log_config=None, access_log=False, ws="none")
        server = uvicorn.Server(config)
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]})
        thread.start()
        try:
            yield f"http://127.0.0.1:{port}/?token={access.token}"
        finally:
            page.events.close()
            server.should_exit = True
            thread.join()
