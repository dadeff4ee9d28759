"""``serve``: the plan, and running the server."""

from __future__ import annotations

import asyncio
import logging
import signal
import socket
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager, suppress
from dataclasses import KW_ONLY, dataclass
from pathlib import Path
from typing import Annotated, Any

from cyclopts import Parameter

from cellwright.api.shared_options import Planes, Series, TimePoint
from cellwright.core.errors import UsageError
from cellwright.core.interrupts import Interrupted
from cellwright.core.memory import give_freed_memory_back
from cellwright.core.notes import Note, summarise
from cellwright.core.progress import SILENT, ProgressReporter
from cellwright.core.text import count

PORT = 8765
# Threads take turns at this interval: an edit waits for the ones that write files in the background.
_SWITCH_S = 0.001
_LOOPBACK = ("127.0.0.1", "localhost", "::1")


@Parameter(name="*")
@dataclass(frozen=True)
class ServePlan:
    """Look at images, correct objects, train and export on a local page."""

    source: Path | None = None
    """A folder of images, a dataset, a prediction folder, a tile job, or a project that was served before."""
    _: KW_ONLY
    out: Path | None = None
    """Project folder to write (default: the project itself if one is given, else <source>_project beside it)."""
    host: str = "127.0.0.1"
    """Address to listen on; other machines can reach the page only with `allow_remote=True`."""
    port: int = 0
    """Port to listen on; 0 takes 8765, or any free one if that is in use."""
    allow_remote: Annotated[bool, Parameter(negative=())] = False
    """Let other machines connect to `host`. The link is not encrypted: use it in a network that you trust."""
    z: Planes = None
    t: TimePoint = None
    series: Series = None


@dataclass(frozen=True)
class Served:
    """Where a server was, and what it has left."""

    folder: Path
    n_images: int
    n_corrected: int


def run(
    plan: ServePlan,
    screen: ProgressReporter = SILENT,
    *,
    announce: Callable[[str], object] = lambda _: None,
    dry_run: bool = False,
) -> Served | None:
    """Serve a project until interrupted (Ctrl-C is how it ends); None after a dry run.

    announce: called with the link once it can be opened.

    Raises `UsageError` for an address that other machines reach without ``allow_remote``, or if the extra is missing;
    `Interrupted` after SIGTERM or SIGHUP, when all is saved.
    """
    _check(plan)
    try:
        import fastapi  # noqa: F401
        import uvicorn
    except ImportError as error:
        remedy = 'pip install "cellwright[serve]"'
        raise UsageError("the page needs other packages", got=f"no {error.name}", remedy=remedy) from error
    from cellwright.data.images.reading import Reading
    from cellwright.serve.app import build_app
    from cellwright.serve.edits import warm_up
    from cellwright.serve.project import Page, Project, default_folder, find_source, is_project

    folder = default_folder(plan.source) if plan.out is None else plan.out
    is_new = not is_project(folder)
    opens = plan.source is not None and plan.source.resolve() != folder.resolve()
    part = Reading(z=plan.z, t=plan.t, series=plan.series)
    found = find_source(plan.source, part) if opens and plan.source is not None else None
    screen.note(f"project: {folder}/ ({'new' if is_new else 'as it was left'})")
    if dry_run:
        return None
    root = Path() if plan.source is None else plan.source if plan.source.is_dir() else plan.source.parent
    with _listen(plan) as listening, closing(Project(folder, roots=[root])) as project:
        if found is not None:
            notes: list[Note] = []
            new = project.add(found, notes=notes)
            for line in (f"{count(len(new), 'new image')} from {plan.source}", *summarise(notes)):
                screen.note(line)
        page = Page(project)
        port = listening.getsockname()[1]
        shown = "127.0.0.1" if plan.host in ("0.0.0.0", "::", *_LOOPBACK) else plan.host
        page_url = f"http://{f'[{shown}]' if ':' in shown else shown}:{port}/"
        access = _access(plan, port, lambda token: screen.note(f"for another browser: {page_url}?token={token}"))
        threading.Thread(target=warm_up, name="cellwright warm up", daemon=True).start()
        app = build_app(page, access)
        announce(f"{page_url}?token={access.token}")
        if access.any_address:
            screen.note(f"from other machines: http://{socket.gethostname()}:{port}/?token={access.token}")
        screen.note("stop with Ctrl-C; everything is saved as you go")
        _serve(uvicorn, app, listening, page.events.close)
        images = project.images
    return Served(project.folder, len(images), sum(record.is_corrected for record in images))


def _check(plan: ServePlan) -> None:
    if not 0 <= plan.port <= 65535:
        raise UsageError("invalid `port`", got=plan.port, expected="0 to 65535")
    if plan.host not in _LOOPBACK and not plan.allow_remote:
        raise UsageError(
            "other machines could reach the page at this address",
            got=f"`host={plan.host!r}`",
            remedy="omit `host`, or add `allow_remote=True` in a network that you trust",
        )


def _access(plan: ServePlan, port: int, announce: Callable[[str], object]) -> Any:
    from cellwright.serve.security import Access

    hosts = {"127.0.0.1", "localhost", "::1"}
    if plan.allow_remote:
        hosts |= {plan.host.lower(), socket.gethostname().lower(), socket.getfqdn().lower()}
    return Access(port, frozenset(hosts), any_address=plan.host in ("0.0.0.0", "::"), announce=announce)


def _listen(plan: ServePlan) -> socket.socket:
    """A socket that listens at the address of the plan."""
    family = socket.AF_INET6 if ":" in plan.host else socket.AF_INET
    last: OSError | None = None
    for port in (PORT, 0) if plan.port == 0 else (plan.port,):
        listening = socket.socket(family, socket.SOCK_STREAM)
        try:
            listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            listening.bind((plan.host, port))
            listening.listen(128)
            return listening
        except OSError as error:
            listening.close()
            last = error
    raise UsageError(
        "cannot listen at this address",
        got=f"{plan.host}, port {plan.port or PORT}: {last}",
        remedy="choose another `port`, or stop what uses it",
    )


def _serve(uvicorn: Any, app: Any, listening: socket.socket, end: Callable[[], None]) -> None:
    """Serve until interrupted. end: ends what never ends by itself, so that the server can stop at once.

    Ctrl-C is how a server is meant to end; other signals raise `Interrupted`, as in every command.
    """
    config = uvicorn.Config(
        app,
        log_config=None,
        access_log=False,
        lifespan="on",
        server_header=False,
        timeout_graceful_shutdown=3,
        timeout_keep_alive=30,
        ws="none",
    )
    server = uvicorn.Server(config)
    stop = server.handle_exit

    received: list[int] = []

    def handle_exit(number: int, frame: Any) -> None:
        received.append(number)
        end()
        stop(number, frame)

    server.handle_exit = handle_exit
    logging.getLogger("uvicorn.error").addFilter(_is_worth_showing)
    sys.setswitchinterval(_SWITCH_S)
    give_freed_memory_back()
    with suppress(KeyboardInterrupt), _on_hangup(handle_exit):
        server.run(sockets=[listening])
    if received and received[0] != signal.SIGINT:
        raise Interrupted(received[0])


@contextmanager
def _on_hangup(handler: Callable[[int, Any], None]) -> Iterator[None]:
    """Let a closed terminal end the server as the signals do that uvicorn handles; not after nohup, or on Windows."""
    number = getattr(signal, "SIGHUP", None)
    is_main = threading.current_thread() is threading.main_thread()
    if number is None or not is_main or (before := signal.getsignal(number)) is signal.SIG_IGN:
        yield
        return
    signal.signal(number, handler)
    try:
        yield
    finally:
        signal.signal(number, before)


def _is_worth_showing(record: logging.LogRecord) -> bool:
    """Whether a message of the server is about a fault, and not about requests that were cut off at its end."""
    is_cut = record.exc_info is not None and isinstance(record.exc_info[1], asyncio.CancelledError)
    return not is_cut and "graceful shutdown" not in record.getMessage()
