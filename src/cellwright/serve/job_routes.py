"""Jobs, measurements, evaluations and exports of the page."""

from __future__ import annotations

from fastapi import APIRouter

from cellwright.serve.project import Page


def job_router() -> APIRouter:
    """The routes."""
    return APIRouter()


def start(page: Page) -> None:
    """Called when the server starts."""


def stop(page: Page) -> None:
    """Called when the server ends."""
