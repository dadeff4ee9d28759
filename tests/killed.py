"""Kills a function at a given file operation: it runs in a child process, which ends there without any clean-up."""

from __future__ import annotations

import io
import os
import shutil
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

OPERATIONS = ("replace", "rename", "unlink", "mkdir", "rmdir", "fsync", "write", "ftruncate", "utime")


def run_killed(function: Callable[[], object], at: int) -> bool:
    """Run ``function`` in a child that ends at its ``at``-th file operation; whether it was killed before its end."""
    child = os.fork()
    if child == 0:
        code = 1
        try:
            die_at(at)
            function()
            code = 0
        except BaseException:
            traceback.print_exc()
            raise
        finally:
            os._exit(code)
    _, status = os.waitpid(child, 0)
    code = os.waitstatus_to_exitcode(status)
    assert code in (0, 9), "the function raised"
    return code == 9


def die_at(at: int) -> Callable[[], int]:
    """Have this process end at its ``at``-th file operation, counted from 1; 0: never. Returns how many there were.

    Every second time the operation is half done: it has happened, but its caller does not know.
    """
    done = 0

    def counted(operation: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **kwargs: Any) -> Any:
            nonlocal done
            done += 1
            if done == at:
                try:
                    if at % 2:
                        operation(*args, **kwargs)
                finally:
                    os._exit(9)
            return operation(*args, **kwargs)

        return call

    def opened(*args: Any, **kwargs: Any) -> Any:
        mode = args[1] if len(args) > 1 else kwargs.get("mode", "r")
        return (counted(plain_open) if {*mode} & {*"wxa+"} else plain_open)(*args, **kwargs)

    plain_open = io.open
    io.open = opened
    for name in OPERATIONS:
        setattr(os, name, counted(getattr(os, name)))
    return lambda: done


def every_kill(folder: Path, function: Callable[[], object], step: int = 5) -> Iterator[int]:
    """Kill ``function`` at every ``step``-th operation, each time with ``folder`` as it was; yields after each kill."""
    before = folder.with_name(f"{folder.name} before")
    if folder.exists():
        shutil.copytree(folder, before, symlinks=True)
    at = 1
    while run_killed(function, at):
        yield at
        shutil.rmtree(folder, ignore_errors=True)
        if before.exists():
            shutil.copytree(before, folder, symlinks=True)
        at += step
    assert at > 1, "no operation was counted"
