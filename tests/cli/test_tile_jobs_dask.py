"""A tile job on a Dask cluster of two processes, one of which is killed in the middle."""

from __future__ import annotations

import os
import signal
import threading
import time
from pathlib import Path

import pytest
import tifffile
from drawn import run

from cellwright.data.synthetic import draw_field

distributed = pytest.importorskip("distributed")

HW = (192, 256)


@pytest.mark.usefixtures("forked_workers")
@pytest.mark.filterwarnings("ignore")  # those of the cluster
def test_a_worker_that_is_killed_loses_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tifffile.imwrite(tmp_path / "field.tif", draw_field(4, HW, 25)[0].data, tile=(64, 64), photometric="rgb")
    words = ["predict", "field.tif", "--model=nuclei@1", "--tile=128", "--diameter=24", "--labels=tiff", "--quiet"]
    killed: list[int] = []
    with distributed.LocalCluster(
        n_workers=2, processes=True, threads_per_worker=1, dashboard_address=None, local_directory=tmp_path / "scratch"
    ) as cluster:
        monkeypatch.chdir(tmp_path)  # the workers are elsewhere, where relative paths would not be found
        pids = distributed.Client(cluster).run(os.getpid)

        def kill_one() -> None:
            until = time.monotonic() + 120
            while time.monotonic() < until and not list((tmp_path / "dask").glob("tiles/*.tile")):
                time.sleep(0.01)
            killed.append(next(iter(pids.values())))
            os.kill(killed[0], signal.SIGKILL)

        thread = threading.Thread(target=kill_one)
        thread.start()
        code = run(*words, f"--dask={cluster.scheduler_address}", "--out=dask")
        thread.join()
    assert code == 0
    assert killed
    assert run(*words, "--out=here") == 0
    for name in ("labels.tif", "summary.csv", "objects.geojson.gz"):
        assert (tmp_path / "dask" / name).read_bytes() == (tmp_path / "here" / name).read_bytes(), name
