"""``doctor`` reports what is installed, quickly."""

from __future__ import annotations

import subprocess
import sys
from importlib import metadata

import pytest

from cellwright.api import doctor
from cellwright.api.doctor import DoctorPlan, extras, facts
from cellwright.core.versions import version_of
from cellwright.models.openvino_graph import has_bf16


def test_the_extras_are_those_of_the_installed_package() -> None:
    assert [name for name, _ in extras()] == [
        f"extra {name}" for name in metadata.metadata("cellwright").get_all("Provides-Extra") or ()
    ]


def test_an_extra_is_installed_only_with_all_its_packages(monkeypatch: pytest.MonkeyPatch) -> None:
    version = metadata.version

    def without_onnxruntime(package: str) -> str:
        if package == "onnxruntime":
            raise metadata.PackageNotFoundError(package)
        return version(package)

    installed = dict(extras())["extra onnx"]
    assert installed.startswith("installed: ")
    assert f"onnx {version('onnx')}" in installed
    monkeypatch.setattr(doctor, "version_of", version_of.__wrapped__)  # which keeps no earlier answer
    monkeypatch.setattr(metadata, "version", without_onnxruntime)
    assert dict(extras())["extra onnx"] == 'missing onnxruntime: pip install "cellwright[onnx]"'


def test_torch_is_imported_on_request_only() -> None:
    code = "import sys; from cellwright.api.doctor import facts; facts(); print('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "False\n"
    assert "GPU" not in dict(facts())
    found = dict(facts(DoctorPlan(device=True)))
    assert {"GPU", "PyTorch threads"} < set(found)
    assert found["bf16"].startswith("yes" if has_bf16() else "no")
