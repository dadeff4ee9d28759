"""``pip install cellwright``, without the extra train: the wheel and its dependencies alone predict, without PyTorch.

The environment has the packages of this one by links, as many as the metadata of the wheel ask for, so that the test
needs no network and no minute of installing.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
import venv
import zipfile
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path

import cv2
import numpy as np
import pytest
from packaging.requirements import Requirement

from cellwright.api.models import load_model
from cellwright.core.image import Image
from cellwright.data.synthetic import FieldLook, draw_field

# Bytes on disk of all that is installed, compiled Python aside.
LARGEST_MB = 1050


def needed(requirements: list[str]) -> Iterator[metadata.Distribution]:
    """The installed packages that requirements ask for, and those that these ask for."""
    seen: set[tuple[str, str]] = set()
    todo = [(Requirement(text), "") for text in requirements]
    while todo:
        requirement, extra = todo.pop()
        if requirement.marker is not None and not requirement.marker.evaluate({"extra": extra}):
            continue
        own = metadata.distribution(requirement.name)
        for wanted in ("", *requirement.extras):
            if (requirement.name.lower(), wanted) not in seen:
                if not wanted:
                    yield own
                seen.add((requirement.name.lower(), wanted))
                todo += [(Requirement(text), wanted) for text in own.requires or ()]


@pytest.fixture(scope="module")
def environment(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, float]]:
    """The Python of an environment with the wheel and what it needs; and the size of each package, MB."""
    root = tmp_path_factory.mktemp("small")
    build = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", root]
    subprocess.run(build, cwd=Path(__file__).parents[1], check=True, capture_output=True)
    (wheel,) = root.glob("*.whl")
    venv.create(root / "env", symlinks=os.name != "nt", with_pip=False)
    python = root / "env" / ("Scripts/python.exe" if os.name == "nt" else "bin/python")
    show = "import sysconfig; print(sysconfig.get_path('purelib'))"
    done = subprocess.run([python, "-c", show], capture_output=True, text=True, check=True)
    packages = Path(done.stdout.strip())
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(packages)
        sizes = {"cellwright": sum(member.file_size for member in archive.infolist()) / 1e6}
        (name,) = (name for name in archive.namelist() if re.fullmatch(r"[^/]*\.dist-info/METADATA", name))
    requires = metadata.PathDistribution(packages / Path(name).parent).requires or []
    for own in needed(requires):
        files = [file for file in own.files or () if "__pycache__" not in file.parts and file.parts[0] != ".."]
        sizes[own.name] = sum(Path(str(own.locate_file(file))).stat().st_size for file in files) / 1e6
        for top in {file.parts[0] for file in files}:
            if not (packages / top).exists():
                (packages / top).symlink_to(str(own.locate_file(top)))
    return python, sizes


def run_in(python: Path, *words: object) -> subprocess.CompletedProcess[str]:
    variables = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}
    # Compiling takes half a minute in a new environment, and an image of this size is soon done without.
    variables["NUMBA_DISABLE_JIT"] = "1"
    command = [python, "-m", "cellwright", *map(str, words)]
    return subprocess.run(command, env=variables, cwd=python.parent, capture_output=True, text=True, check=False)


def test_it_predicts_without_pytorch_and_is_small(
    environment: tuple[Path, dict[str, float]], tmp_path: Path, record_property: pytest.RecordProperty
) -> None:
    python, sizes = environment
    assert not {"torch", "torchvision"} & set(sizes)
    largest = sorted(sizes.items(), key=lambda item: -item[1])[:8]
    total, shown = sum(sizes.values()), ", ".join(f"{name} {size:.0f}" for name, size in largest)
    print(f"\ncellwright without PyTorch: {total:.0f} MB in {len(sizes)} packages ({shown})")
    record_property("installed_mb", round(total))
    assert total < LARGEST_MB
    image = draw_field(2, (48, 56), 5, FieldLook(stain="fluorescence"))[0].data
    cv2.imwrite(str(tmp_path / "a.png"), image[..., ::-1])
    options = ("--diameter", 14, "--save", "masks")
    done = run_in(python, "predict", tmp_path / "a.png", *options, "--out", tmp_path / "out")
    assert done.returncode == 0, done.stdout + done.stderr
    labels = cv2.imread(str(tmp_path / "out" / "a_masks.tif"), cv2.IMREAD_UNCHANGED)
    expected = load_model("nuclei", device="cpu", backend="torch").predict(Image.from_array(image), diameter=14)
    assert len(expected) >= 3
    assert np.array_equal(labels, expected.to_label_map())
    refused = run_in(python, "train", "dsb2018/nuclei", "--data", tmp_path)
    assert refused.returncode == 2
    assert 'pip install "cellwright[train]"' in refused.stderr
