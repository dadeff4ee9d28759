"""Recomputes the results of `ensemble-boxes` in a separate environment (slow: it installs the package)."""

from __future__ import annotations

import json
import subprocess
import venv
from pathlib import Path

import pytest

SCRIPT = Path(__file__).with_name("make_fusion_references.py")


@pytest.mark.slow
def test_the_stored_results_can_be_recomputed(tmp_path: Path) -> None:
    venv.create(tmp_path / "env", with_pip=True)
    python = tmp_path / "env" / "bin" / "python"
    install = [python, "-m", "pip", "install", "-q", "ensemble-boxes==1.0.9"]
    if subprocess.run(install, capture_output=True, check=False).returncode:
        pytest.skip("ensemble-boxes cannot be installed here")
    subprocess.run([python, SCRIPT, tmp_path / "again.json"], check=True)
    again = json.loads((tmp_path / "again.json").read_text())
    stored = json.loads(SCRIPT.with_name("fusion_references.json").read_text())
    assert again["cases"] == stored["cases"]
