"""The files for other places (docs/install.md): the container, conda, a folder of wheels. Nothing is downloaded here.

The slow tests follow the steps in an environment of their own, with the network.
"""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
import sys
import tarfile
import venv
import zipfile
from email.parser import Parser
from pathlib import Path

import cv2
import pytest
import yaml

from cellwright.data.synthetic import draw_field

ROOT = Path(__file__).parents[1]
LOCK, PREDICT_LOCK = "requirements.lock", "requirements.predict.lock"
SHOWN = ("README.md", "CHANGELOG.md", "CITATION.cff", "LICENSE", "THIRD_PARTY.md", PREDICT_LOCK)
BASE = "python:3.12-slim-bookworm"


def instructions() -> list[tuple[str, str]]:
    """The instructions of the Dockerfile: (name, the rest)."""
    text = re.sub(r"\\\n\s*", " ", (ROOT / "Dockerfile").read_text())
    lines = [line for line in text.splitlines() if line.strip() and not line.startswith("#")]
    return [(name, rest) for name, _, rest in (line.partition(" ") for line in lines)]


def pinned(lock: str) -> dict[str, str]:
    """What a lock says of each package and marker: version and hashes."""
    text = (ROOT / lock).read_text()
    blocks = re.findall(r"^(\S+?==[^\\]+)((?:\\\n {4}--hash=\S+ ?)+)", text, re.MULTILINE)
    assert sum("==" in line for line in text.splitlines() if not line.startswith(" ")) == len(blocks)
    return {" ".join(head.split()): hashes for head, hashes in blocks}


def test_the_lock_for_prediction_is_a_part_of_the_lock() -> None:
    small, whole = pinned(PREDICT_LOCK), pinned(LOCK)
    names = {head.partition("==")[0] for head in small}
    assert {"numpy", "openvino", "fastapi", "hatchling"} <= names
    assert not {"torch", "torchvision", "pytest"} & names
    versions = {head.partition(" ")[0]: hashes for head, hashes in whole.items()}
    assert {head: hashes for head, hashes in small.items() if versions.get(head.partition(" ")[0]) != hashes} == {}


def test_the_container_follows_the_rules() -> None:
    """What hadolint and a careful reader would ask for."""
    steps = instructions()
    bases = [rest.split()[0] for name, rest in steps if name == "FROM"]
    assert set(bases) == {BASE}  # one version, not "latest"
    final = steps[max(k for k, (name, _) in enumerate(steps) if name == "FROM") :]
    user = [k for k, (name, rest) in enumerate(final) if name == "USER" and rest not in ("root", "0")]
    assert user
    assert all(name != "RUN" for name, _ in final[user[-1] :])
    runs = [rest for name, rest in steps if name == "RUN"]
    pips = [run for run in runs if "pip install" in run]
    assert len(pips) == 2
    assert all("--no-cache-dir" in run and ("--require-hashes" in run or "--no-index" in run) for run in pips)
    assert not any(word in run for run in runs for word in ("sudo", "curl", "wget", "apt-get", "http"))
    assert not [rest for name, rest in steps if name in ("ADD", "VOLUME", "MAINTAINER", "ONBUILD")]
    for name, rest in steps:
        if name == "WORKDIR":
            assert rest.startswith("/")
        if name in ("ENTRYPOINT", "CMD"):
            assert isinstance(yaml.safe_load(rest), list)  # a list: signals reach cellwright
    assert ("ENTRYPOINT", '["cellwright"]') in final


def copy_sources(folder: Path) -> None:
    """What the Dockerfile copies from the repository, which .dockerignore lets through."""
    let_in = {line[1:] for line in (ROOT / ".dockerignore").read_text().split() if line.startswith("!")}
    for name, rest in instructions():
        if name != "COPY" or rest.startswith("--from"):
            continue
        *sources, target = rest.split()
        for source in sources:
            assert source in let_in
            if (ROOT / source).is_dir():
                shutil.copytree(ROOT / source, folder / target, ignore=shutil.ignore_patterns("__pycache__"))
            else:
                shutil.copy(ROOT / source, folder / target)


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the wheel of what the Dockerfile copies, and with the wheel and the archive of the repository."""
    root = tmp_path_factory.mktemp("built")
    (root / "src").mkdir()
    copy_sources(root / "src")
    for source, out, kinds in ((root / "src", "copied", "wheel"), (ROOT, "dist", "wheel,sdist")):
        words = [sys.executable, "-m", "hatchling", "build", "-d", root / out]
        words += [word for kind in kinds.split(",") for word in ("-t", kind)]
        subprocess.run(words, cwd=source, check=True, capture_output=True)
    return root


def contents(wheel: Path) -> dict[str, bytes]:
    with zipfile.ZipFile(wheel) as archive:
        return {name: archive.read(name) for name in archive.namelist()}


def test_the_container_and_the_archive_give_the_same_wheel(built: Path, tmp_path: Path) -> None:
    (wheel,), (copied,), (archive,) = (
        list((built / name).glob(ending)) for name, ending in (("dist", "*.whl"), ("copied", "*.whl"), ("dist", "*.gz"))
    )
    expected = contents(wheel)
    assert contents(copied) == expected
    with tarfile.open(archive) as file:
        file.extractall(tmp_path, filter="data")
    (unpacked,) = tmp_path.iterdir()
    build = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", tmp_path / "again"]
    subprocess.run(build, cwd=unpacked, check=True, capture_output=True)
    (again,) = (tmp_path / "again").glob("*.whl")
    assert contents(again) == expected
    assert not [name for name in expected if not name.startswith("cellwright")]
    assert any(name.endswith("licenses/THIRD_PARTY.md") for name in expected)
    assert {path.name for path in unpacked.iterdir()} == {"src", "pyproject.toml", "PKG-INFO", ".gitignore", *SHOWN}
    assert archive.stat().st_size < 20e6  # the package index takes 100 MB, people less


def test_the_metadata_is_what_the_package_index_shows(built: Path) -> None:
    (wheel,) = (built / "dist").glob("*.whl")
    (name,) = (name for name in contents(wheel) if name.endswith("METADATA"))
    facts = Parser().parsestr(contents(wheel)[name].decode())
    assert facts["Requires-Python"] == ">=3.11"
    assert facts["Description-Content-Type"] == "text/markdown"
    assert facts["License-Expression"] == "BSD-3-Clause"
    assert "Segment your own images" in facts.get_payload()
    assert not [line for line in facts.get_all("Requires-Dist", []) if "@" in line or "dev" in line.split(";")[-1]]


def test_conda_installs_the_lock() -> None:
    content = yaml.safe_load((ROOT / "environment.yml").read_text())
    *_, pip = content["dependencies"]
    assert pip == {"pip": [f"-r {PREDICT_LOCK}"]}
    assert "python=3.12" in content["dependencies"]


def new_environment(folder: Path) -> Path:
    venv.create(folder, symlinks=os.name != "nt", with_pip=True)
    return folder / ("Scripts" if os.name == "nt" else "bin")


def run(words: list[str], cwd: Path, **variables: str) -> None:
    kept = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}
    done = subprocess.run(words, cwd=cwd, env=kept | variables, capture_output=True, text=True, check=False)
    assert done.returncode == 0, (words, done.stdout[-2000:], done.stderr[-2000:])


def predicts(scripts: Path, folder: Path) -> None:
    cv2.imwrite(str(folder / "drawn.png"), draw_field(1, (64, 64), 5)[0].data[:, :, ::-1])
    run([str(scripts / "cellwright"), "predict", "drawn.png", "--out", "results"], folder)
    assert (folder / "results" / "drawn_masks.tif").is_file()


@pytest.mark.slow
def test_the_steps_of_the_container(tmp_path: Path) -> None:
    prefix = tmp_path / "opt" / "cellwright"
    source = tmp_path / "src"
    source.mkdir()
    copy_sources(source)
    scripts = new_environment(prefix)
    for name, rest in instructions():
        if name == "RUN" and "pip" in rest:
            run(shlex.split(rest.replace("/opt/cellwright", str(prefix))), source)
    predicts(scripts, tmp_path)


@pytest.mark.slow
def test_the_folder_of_wheels(tmp_path: Path) -> None:
    """The commands of docs/install.md, the last one without an index."""
    text = (ROOT / "docs" / "install.md").read_text().partition("## Without a network")[2].partition("\n## ")[0]
    blocks = re.findall(r"```sh\n(.*?)```", text, re.DOTALL)
    assert len(blocks) == 2
    copy_sources(tmp_path)
    for k, block in enumerate(blocks):
        scripts = new_environment(tmp_path / f"machine {k}")
        offline = {"PIP_NO_INDEX": "1", "PIP_FIND_LINKS": "", "PIP_CONFIG_FILE": os.devnull} if k else {}
        for line in block.strip().splitlines():
            words = shlex.split(line)
            run([str(scripts / "python"), *words[1:]], tmp_path, **offline)
    predicts(scripts, tmp_path)
