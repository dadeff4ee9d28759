"""Forked processes that are connected by gloo."""

from __future__ import annotations

import os
import pickle
import tempfile
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch._dynamo  # noqa: F401 - optimisers need it, which takes 2 s: here once, or in each rank
from torch import distributed

from cellwright.ops.ranks import Ranks


def together(n: int, folder: Path, of_rank: Callable[[Ranks, int], Any]) -> list[Any]:
    """What ``of_rank(ranks, rank)`` returns in each of ``n`` forked processes that are connected by gloo."""
    children, folder = [], Path(tempfile.mkdtemp(dir=folder))
    for rank in range(n):
        child = os.fork()
        if child == 0:
            code = 1
            try:
                store = distributed.FileStore(str(folder / "store"), n)
                distributed.init_process_group("gloo", store=store, rank=rank, world_size=n)
                (folder / f"{rank}.pickle").write_bytes(pickle.dumps(of_rank(Ranks(n), rank)))
                code = 0
            except BaseException:
                traceback.print_exc()
            finally:
                os._exit(code)
        children.append(child)
    codes = [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children]
    assert codes == [0] * n
    return [pickle.loads((folder / f"{rank}.pickle").read_bytes()) for rank in range(n)]
