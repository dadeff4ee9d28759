"""Processes that train together: a run that is resumed, and what rank 0 says when one of the others fails."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from tiny_run import draw_samples, tiny_config, tiny_loader, tiny_network, tiny_train
from torch import distributed

from cellwright.config.input import DataConfig
from cellwright.core.errors import CellwrightError, InputError, RecipeError, UsageError
from cellwright.ops.ranks import Ranks
from cellwright.training import distributed as team_module
from cellwright.training.distributed import Place, Team, check_share, lead
from cellwright.training.loop import follow
from ranks import together

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="forks, and signals")
CPU = torch.device("cpu")
CONFIG = tiny_config(optimiser="adam", accumulate=2, ema_decay=0.9, batch_size=4)


def train_in_two(root: Path, data: Path, max_minutes: float | None = None) -> None:
    """A call of `train` in two processes."""
    drawn = draw_samples(data)

    def of_rank(ranks: Ranks, rank: int) -> None:
        team = Team(Place(rank, ranks.n), control=distributed.new_group(backend="gloo"))
        if rank:
            loader = tiny_loader(drawn, CONFIG, DataConfig(), place=team.place)
            follow(tiny_network(), loader, CONFIG, CPU, team)
        else:
            tiny_train(root, drawn, CONFIG, team=team, max_minutes=max_minutes)

    together(2, data, of_rank)


def test_a_resumed_run_of_two_processes_ends_bit_identical_and_can_be_resumed_by_one(tmp_path: Path) -> None:
    train_in_two(tmp_path / "straight", tmp_path / "data")
    for _ in range(3):  # each takes one step and evaluates
        train_in_two(tmp_path / "resumed", tmp_path / "data", max_minutes=0)
    checkpoints = sorted(path.name for path in (tmp_path / "resumed" / "checkpoints").iterdir())
    assert checkpoints == ["step_00000002", "step_00000003"]
    by_one = tmp_path / "by_one"
    subprocess.run(["cp", "-r", str(tmp_path / "resumed"), str(by_one)], check=True)
    train_in_two(tmp_path / "resumed", tmp_path / "data")
    for name in ("weights", "optimiser", "averaged"):
        file = f"checkpoints/step_00000012/{name}.safetensors"
        straight, resumed = load_file(tmp_path / "straight" / file), load_file(tmp_path / "resumed" / file)
        assert straight.keys() == resumed.keys()
        assert all(torch.equal(straight[key], resumed[key]) for key in straight)
    result = tiny_train(by_one, draw_samples(tmp_path / "data"), CONFIG)
    assert result.finished
    assert (by_one / "log.csv").read_text().count("\n") == 13


def test_data_that_other_processes_cannot_read() -> None:
    code = "import torch\nfrom cellwright.training.distributed import join\n"
    code += "with join(torch.device('cpu')) as team:\n    team.receive()\n"
    with pytest.raises(UsageError, match="the data cannot be sent"), lead(2, CPU, code) as team:
        team.start()
        team.send(lambda: 0)


FAILURES = {
    "error": ("raise InputError('the image is empty', where='a.tif', remedy='save it again')", InputError,
              "rank 1 of 2 (training process 2): the image is empty\n  where: a.tif\n  fix: save it again"),
    "bug": ("[].pop()", RuntimeError, "IndexError: pop from empty list"),
    "killed": ("os.kill(os.getpid(), signal.SIGKILL)", InputError, "rank 1 of 2 (training process 2) ended\n"
               "  got: it was ended by SIGKILL\n  fix: check the memory: every process needs as much as one; run the "),
    "stopped": ("os.kill(os.getpid(), signal.SIGSTOP)", InputError, "one of the 2 training processes hangs"),
}  # fmt: skip


@pytest.mark.parametrize("kind", FAILURES)
def test_the_failure_of_a_process_is_the_error_of_the_run(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    line, error, text = FAILURES[kind]
    code = textwrap.dedent(f"""
        import os, signal, torch
        from cellwright.core.errors import InputError
        from cellwright.training.distributed import join
        with join(torch.device("cpu")) as team:
            assert team.receive() == "go"
            {line}
            team.ranks.count(1)
    """)
    is_stopped = kind == "stopped"
    for name, seconds in (("PATIENCE_S", 3.0), ("_CAUSE_S", 0.2), ("_CLOSE_S", 0.2)):
        monkeypatch.setattr(team_module, name, seconds if is_stopped else 60.0)
    with pytest.raises(error) as caught, lead(2, CPU, code) as team:
        team.start()
        folder, members = team.folder, team.members
        team.send("go")
        team.ranks.count(1)
    assert text in str(caught.value)
    assert isinstance(caught.value, CellwrightError) == (kind != "bug")
    assert folder is not None
    assert not folder.exists()
    assert all(member.returncode is not None for member in members)
    assert not distributed.is_initialized()


def test_a_process_that_cannot_start_is_named_with_its_last_words() -> None:
    with pytest.raises(InputError) as caught, lead(2, CPU, "raise SystemExit('no module of that name')") as team:
        team.start()
    assert "rank 1 of 2" in str(caught.value)
    assert "exit code 1; its last words: no module of that name" in str(caught.value)


def test_members_end_with_rank_0(tmp_path: Path) -> None:
    """Also if that is killed, in which case they remove the folder of the store."""
    member = "import torch\nfrom cellwright.training.distributed import join\n"
    member += 'with join(torch.device("cpu")) as team:\n    team.receive()\n'
    rank_0 = os.fork()
    if rank_0 == 0:
        try:
            with lead(2, CPU, member) as team:
                team.start()
                (tmp_path / "facts.partial").write_text(f"{team.members[0].pid} {team.folder}")
                (tmp_path / "facts.partial").rename(tmp_path / "facts")
                time.sleep(600)
        finally:
            os._exit(1)
    while not (tmp_path / "facts").exists():
        assert os.waitpid(rank_0, os.WNOHANG) == (0, 0)
        time.sleep(0.05)
    pid, folder = (tmp_path / "facts").read_text().split()
    os.kill(int(pid), 0)
    os.kill(rank_0, signal.SIGKILL)
    os.waitpid(rank_0, 0)
    deadline = time.monotonic() + 60
    while Path(folder).exists():
        assert time.monotonic() < deadline
        time.sleep(0.05)
    while is_running(int(pid)):
        assert time.monotonic() < deadline
        time.sleep(0.05)


def is_running(pid: int) -> bool:
    """Whether there is such a process, apart from one that nobody has waited for."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def test_batches_that_cannot_be_shared() -> None:
    check_share(4, 2, compiles=False)
    check_share(5, 1, compiles=True)
    with pytest.raises(RecipeError, match=r"(?s)3 devices cannot share this batch.*got: 4.*train\.batch_size=6"):
        check_share(4, 3, compiles=False)
    with pytest.raises(RecipeError, match="compiled backbone"):
        check_share(4, 2, compiles=True)


def test_the_place_of_a_process(monkeypatch: pytest.MonkeyPatch) -> None:
    assert Place.of_environment() == Place(0, 1, 0)
    monkeypatch.setenv("RANK", "3")
    monkeypatch.setenv("WORLD_SIZE", "4")
    assert Place.of_environment() == Place()  # of another program: nobody to meet
    monkeypatch.setenv("MASTER_ADDR", "127.0.0.1")
    monkeypatch.setenv("MASTER_PORT", "1234")
    monkeypatch.setenv("LOCAL_RANK", "1")
    assert Place.of_environment() == Place(3, 4, 1)
