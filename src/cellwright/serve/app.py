"""The routes of the page: what is asked for, and in which form it is answered. All work is done elsewhere."""

from __future__ import annotations

import asyncio
import base64
import logging
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import numpy as np
from fastapi import APIRouter, FastAPI, Query, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, Response, StreamingResponse
from fastapi.staticfiles import StaticFiles
from pydantic import BaseModel, ConfigDict, Field
from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException

from cellwright.core.errors import CellwrightError, InputError, OutputError, UsageError
from cellwright.core.files import place_error
from cellwright.core.memory import memory_error
from cellwright.core.notes import Note, summarise
from cellwright.core.text import count
from cellwright.data.images.names import IMAGE_SUFFIXES
from cellwright.serve import job_routes, uploads
from cellwright.serve.actions import Edit, make
from cellwright.serve.annotation import Annotation, Applied, Conflict
from cellwright.serve.layer import columns_of, packed
from cellwright.serve.pixels import TILE, parse_shown
from cellwright.serve.project import ImageRecord, Page
from cellwright.serve.security import Access, Guard, TooLarge

STATIC = Path(__file__).with_name("static")
_FOREVER = "private, max-age=31536000, immutable"
_log = logging.getLogger(__name__)
router = APIRouter()
Small = Annotated[int, Query(ge=0, le=1 << 31)]


class OpenRequest(BaseModel):
    model_config = ConfigDict(extra="forbid")
    path: str = Field(min_length=1, max_length=4096)


class ClassRequest(BaseModel):
    model_config = ConfigDict(extra="forbid")
    name: str = Field(min_length=1, max_length=100)


def build_app(page: Page, access: Access) -> Any:
    """The application of a page, with the guard in front of it."""

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        await run_in_threadpool(job_routes.start, page)
        try:
            yield
        finally:
            page.events.close()
            await run_in_threadpool(job_routes.stop, page)

    app = FastAPI(docs_url=None, redoc_url=None, openapi_url=None, lifespan=lifespan)
    app.state.page = page
    app.include_router(router)
    app.include_router(job_routes.job_router())
    app.mount("/static", StaticFiles(directory=STATIC))
    app.add_exception_handler(CellwrightError, _refused)
    app.add_exception_handler(RequestValidationError, _invalid)
    app.add_exception_handler(HTTPException, _http_error)
    app.add_exception_handler(TooLarge, _too_large)
    app.add_exception_handler(OSError, _trouble)
    app.add_exception_handler(MemoryError, _trouble)
    app.add_exception_handler(Exception, _bug)
    return Guard(app, access)


def page_of(request: Request) -> Page:
    """The page that a request is for."""
    return request.app.state.page


# --- pages and project


@router.get("/")
def index() -> Response:
    path = STATIC / "index.html"
    text = path.read_bytes() if path.is_file() else b"<!doctype html><title>cellwright</title>"
    return Response(text, media_type="text/html; charset=utf-8", headers={"cache-control": "no-cache"})


@router.get("/api/project")
def project(request: Request, offset: Small = 0, limit: Annotated[int, Query(ge=0, le=10_000)] = 1000) -> Any:
    page = page_of(request)
    images = page.project.images
    return {
        "name": page.project.name,
        "folder": str(page.project.folder),
        "classes": list(page.project.classes),
        "models": job_routes.list_models(page.project.folder, page.jobs),
        "n_images": len(images),
        "images": [_image_row(record) for record in images[offset : offset + limit]],
        "image_suffixes": sorted(IMAGE_SUFFIXES),
        "problem": page.project.corrected_dataset.error,
    }


@router.post("/api/classes")
def add_class(request: Request, wanted: ClassRequest) -> Any:
    page = page_of(request)
    number = page.project.add_class(wanted.name)
    page.events.publish({"kind": "project"})
    return {"id": number, "classes": list(page.project.classes)}


@router.post("/api/open")
def open_path(request: Request, wanted: OpenRequest) -> Any:
    page = page_of(request)
    notes: list[Note] = []
    new = page.project.add(page.project.allowed(wanted.path), below_roots=True, notes=notes)
    page.events.publish({"kind": "project"})
    message = "; ".join([count(len(new), "new image"), *summarise(notes)])
    return {"images": [_image_row(record) for record in new], "message": message}


@router.get("/api/folders")
def folders(request: Request, path: Annotated[str, Query(max_length=4096)] = "") -> Any:
    """The folders that can be opened, below one of them or all at the top."""
    return page_of(request).project.folders(path)


@router.post("/api/upload")
async def upload(request: Request, name: Annotated[str, Query(min_length=1, max_length=1024)]) -> Any:
    page = page_of(request)
    folder = page.project.folder / "images"
    temporary, target = await uploads.receive(folder, name, request.stream())

    def add() -> list[ImageRecord]:
        place = uploads.keep(temporary, target)
        try:
            return page.project.add(place)
        except BaseException:
            place.unlink(missing_ok=True)
            raise

    new = await run_in_threadpool(add)
    page.events.publish({"kind": "project"})
    return {"images": [_image_row(record) for record in new]}


@router.get("/api/events")
async def events(request: Request) -> Response:
    headers = {"cache-control": "no-store", "x-accel-buffering": "no"}
    return StreamingResponse(page_of(request).events.stream(), media_type="text/event-stream", headers=headers)


# --- an image


@router.get("/api/images/{image_id}")
def image(request: Request, image_id: str) -> Any:
    page = page_of(request)
    pixels, record = page.pixels(image_id), page.project.image(image_id)
    channels = [asdict(facts) for facts in pixels.facts()]
    with page.project.locked(image_id) as annotation:
        scores = annotation.table.columns()["score"]
        known = scores[np.isfinite(scores)]
        state = annotation.state
        return {
            "id": record.id,
            "name": record.name,
            "hw": list(pixels.source.image_hw),
            "levels": [{"scale": 1 << k, "hw": list(pixels.level_hw(k))} for k in range(pixels.n_levels)],
            "tile_px": TILE,
            "version": pixels.version,
            "channels": channels,
            "pixel_size_um": None if pixels.source.pixel_size_um is None else list(pixels.source.pixel_size_um),
            "rev": annotation.rev,
            "score_range": [float(known.min()), float(known.max())] if known.size else None,
            "score_threshold": state.min_score,
            "min_area": state.min_area,
            "regions": [[list(point) for point in region] for region in state.regions],
            "accepted": state.accepted,
            "classes": list(page.project.classes),
            "objects_url": f"/api/images/{record.id}/objects",
            "notes": [*annotation.notes, *(note.text for note in pixels.source.notes)],
        }


@router.delete("/api/images/{image_id}")
def remove(request: Request, image_id: str) -> Any:
    page = page_of(request)
    page.project.remove(image_id)
    page.events.publish({"kind": "project"})
    return {"message": "removed from the project; the file of the image, and its edits, are kept"}


@router.get("/api/images/{image_id}/thumbnail")
def thumbnail(request: Request, image_id: str) -> Response:
    pixels = page_of(request).pixels(image_id)
    return _tagged(request, f'"{pixels.version}"', pixels.thumbnail, "image/jpeg")


@router.get("/api/images/{image_id}/tiles/{level}/{row}/{column}")
def tile(
    request: Request,
    image_id: str,
    level: int,
    row: int,
    column: int,
    show: Annotated[str | None, Query(max_length=8192)] = None,
    v: Annotated[str | None, Query(max_length=64)] = None,
) -> Response:
    pixels = page_of(request).pixels(image_id)
    content = pixels.tile(level, row, column, None if show is None else parse_shown(show))
    lasting = _FOREVER if v == pixels.version else "no-cache"
    return Response(content, media_type="image/jpeg", headers={"cache-control": lasting})


@router.get("/api/images/{image_id}/labels/{level}/{row}/{column}")
def labels(request: Request, image_id: str, level: int, row: int, column: int) -> Response:
    page = page_of(request)
    chunks = page.project.annotation(image_id).chunks
    box = chunks.box_of(row, column, level) if 0 <= level < chunks.n_levels and min(row, column) >= 0 else None
    if not box:
        raise UsageError("there is no such tile", got=f"{level}, {row}, {column}", expected="a tile of the image")
    is_left = level > 1
    while is_left:
        with page.project.locked(image_id) as annotation:
            is_left = next(annotation.chunks.prepare(row, column, level), chunks) is None
    with page.project.locked(image_id) as annotation:
        chunks = annotation.chunks
        tag = f'"{annotation.uid}-{annotation.rev}"'
        headers = {"x-rev": str(annotation.rev), "etag": tag, "cache-control": "no-cache"}
        if request.headers.get("if-none-match") == tag:
            return Response(status_code=304, headers=headers)
        content = chunks.packed_chunk(row, column, level)
    # What HTTP calls deflate is the format of zlib.
    headers |= {"x-rows": str(box.hw[0]), "x-columns": str(box.hw[1]), "content-encoding": "deflate"}
    return Response(content, media_type="application/octet-stream", headers=headers)


@router.get("/api/images/{image_id}/objects")
def objects(request: Request, image_id: str) -> Any:
    with page_of(request).project.locked(image_id) as annotation:
        rev, columns = annotation.rev, annotation.table.columns()
    return _json({"rev": rev, **_columns(columns)})


@router.get("/api/images/{image_id}/history")
def history(request: Request, image_id: str) -> Any:
    with page_of(request).project.locked(image_id) as annotation:
        return annotation.history()


@router.post("/api/images/{image_id}/edits")
def edit(request: Request, image_id: str, wanted: Edit) -> Response:
    page = page_of(request)
    with page.project.locked(image_id) as annotation:
        before = annotation.rev
        try:
            applied = make(annotation, wanted, page.project.classes)
        except Conflict as error:
            since = annotation.boxes_since(annotation.rev if wanted.rev is None else wanted.rev)
            answer = {"error": {"message": str(error)}, **_answer(annotation, since)}
            return _json(answer, status=409)
        answer = _answer(annotation, applied)
        if annotation.rev != before:
            page.project.edited(image_id, annotation)
            places = [{name: box[name] for name in ("y0", "x0", "h", "w")} for box in answer["boxes"]]
            page.events.publish({"kind": "edit", "image": image_id, "client": wanted.client, **answer, "boxes": places})
    return _json(answer)


def _answer(annotation: Annotation, applied: Applied) -> dict[str, Any]:
    """What an edit has changed. The pixels are those of now."""
    rows = [row for row in applied.rows.values() if row is not None]
    removed = [number for number, row in applied.rows.items() if row is None]
    answer: dict[str, Any] = {
        "rev": applied.rev,
        "boxes": [_box(annotation, box) for box in applied.boxes],
        "objects": {"changed": _columns(columns_of(rows)), "removed": removed},
        "message": applied.message,
        **annotation.next_steps(),
    }
    if applied.reload:
        answer["reload"] = True
    if applied.is_state:
        state = annotation.state
        answer["state"] = {
            "regions": [[list(point) for point in region] for region in state.regions],
            "score_threshold": state.min_score,
            "min_area": state.min_area,
            "accepted": state.accepted,
        }
    return answer


def _box(annotation: Annotation, box: Any) -> dict[str, Any]:
    labels_text = base64.b64encode(packed(annotation.chunks.read(box))).decode()
    return {"y0": box.y0, "x0": box.x0, "h": box.hw[0], "w": box.hw[1], "labels": labels_text}


def _columns(columns: dict[str, np.ndarray]) -> dict[str, Any]:
    """The columns of objects as the page knows them."""
    lists: dict[str, Any] = {name: columns[name].tolist() for name in ("id", "y0", "x0", "y1", "x1", "area")}
    lists["score"] = [None if np.isnan(score) else score for score in columns["score"].tolist()]
    lists["class"] = columns["class_id"].tolist()
    lists["origin"] = ["manual" if manual else "auto" for manual in columns["manual"].tolist()]
    return lists


def _image_row(record: ImageRecord) -> dict[str, Any]:
    return {
        "id": record.id,
        "name": record.name,
        "hw": None if record.hw is None else list(record.hw),
        "state": record.state,
        "channels": record.channels,
        "n_objects": record.n_objects,
        "note": record.note,
    }


# --- forms of answers


def _json(content: Any, status: int = 200) -> JSONResponse:
    return JSONResponse(content, status_code=status)


def _tagged(request: Request, tag: str, make_content: Callable[[], bytes], kind: str) -> Response:
    """Content that the browser keeps, and asks for again only if the tag has changed."""
    headers = {"etag": tag, "cache-control": "no-cache"}
    if request.headers.get("if-none-match") == tag:
        return Response(status_code=304, headers=headers)
    return Response(make_content(), media_type=kind, headers=headers)


def _error(status: int, message: str) -> JSONResponse:
    text = message.encode("utf-8", "backslashreplace").decode()
    return JSONResponse({"error": {"message": text}}, status_code=status)


async def _refused(_: Request, error: Exception) -> Response:
    status = 404 if "there is no such" in str(error) else 507 if isinstance(error, OutputError) else 400
    status = 422 if isinstance(error, InputError) and status == 400 else status
    return _error(status, str(error))


async def _invalid(_: Request, error: Exception) -> Response:
    problems = getattr(error, "errors", list)()
    texts = [f"{'.'.join(str(part) for part in p['loc'][1:])}: {p['msg']}" for p in problems[:5]]
    return _error(422, f"invalid request: {'; '.join(texts)}"[:2000])


async def _http_error(_: Request, error: Exception) -> Response:
    status = getattr(error, "status_code", 400)
    return _error(status, str(getattr(error, "detail", "not found")))


async def _too_large(_: Request, error: Exception) -> Response:
    await asyncio.sleep(0)
    return _error(413, "this is too large")


async def _trouble(_: Request, error: Exception) -> Response:
    known = place_error(error) if isinstance(error, OSError) else memory_error(error)
    if known is None:
        raise error
    return _error(507, str(known))


async def _bug(_: Request, error: Exception) -> Response:
    return _error(500, f"this is a bug in cellwright: {type(error).__name__}: {error}"[:500])
