"""Files of ``torch.save`` are read as PyTorch reads them, and claims that they do not hold are refused."""

from __future__ import annotations

import io
import pickle
import zipfile
from collections import Counter, OrderedDict
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from cellwright.core.errors import ModelError
from cellwright.models.weights.sources import read_foreign
from cellwright.models.weights.torch_file import read_torch_file

BASE = torch.arange(24, dtype=torch.float32).reshape(4, 6)
CONTENT: dict[str, Any] = {
    "model": nn.Sequential(nn.Conv2d(2, 3, 3), nn.BatchNorm2d(3)).state_dict(),
    "views": [BASE, BASE.T, BASE[1:3, ::2], BASE[0, 0]],
    "types": [torch.zeros(3).to(dtype) for dtype in (torch.bfloat16, torch.float16, torch.int64, torch.uint8)],
    "flags": torch.tensor([True, False]),
    "empty": torch.zeros(0, 5),
    "parameter": nn.Parameter(torch.ones(2)),
    "others": OrderedDict(size=torch.Size([2, 3]), counts=Counter(a=2), dtype=torch.float32, epoch=7, name=None),
}


def same(a: Any, b: Any) -> bool:
    if isinstance(b, torch.Tensor):
        return a.dtype == b.dtype and torch.equal(a, b.detach())
    if isinstance(b, dict):
        return list(a) == list(b) and all(same(a[key], b[key]) for key in b)
    if isinstance(b, list | tuple):
        return len(a) == len(b) and all(map(same, a, b))
    return a == (str(b) if isinstance(b, torch.dtype) else b)


@pytest.mark.parametrize("is_zip", [True, False])
def test_content_is_that_of_pytorch(tmp_path: Path, is_zip: bool) -> None:
    torch.save(CONTENT, tmp_path / "a.pth", _use_new_zipfile_serialization=is_zip)
    assert same(read_torch_file(tmp_path / "a.pth"), CONTENT)


def zip_of(entries: dict[str, bytes], compression: int = zipfile.ZIP_STORED) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", compression) as archive:
        for name, content in entries.items():
            archive.writestr(f"archive/{name}", content)
    return buffer.getvalue()


def tensor_pickle(size: tuple[int, ...], stride: tuple[int, ...], *, n_values: int = 4, offset: int = 0) -> bytes:
    """The pickle of {"a": tensor}, whose storage "0" has ``n_values`` floats."""

    class Storage:
        pass

    class Pickler(pickle.Pickler):
        def persistent_id(self, value: object) -> object:
            return ("storage", torch.FloatStorage, "0", "cpu", n_values) if isinstance(value, Storage) else None

    class Rebuilt:
        def __reduce__(self) -> tuple[object, ...]:
            return torch._utils._rebuild_tensor_v2, (Storage(), offset, size, stride, False, OrderedDict())

    buffer = io.BytesIO()
    Pickler(buffer, 2).dump({"a": Rebuilt()})
    return buffer.getvalue()


DATA = {"data/0": bytes(16)}
HASH_BOMB = b"\x80\x02)q\x00" + b"".join(b"h%ch%c\x86q%c" % (k, k, k + 1) for k in range(60)) + b"}h\x3cNs."
HOSTILE = {
    "a bomb in the archive": zip_of({"data.pkl": b"N" * 10_000_000 + b"."}, zipfile.ZIP_DEFLATED),
    "a storage that claims more": zip_of({"data.pkl": tensor_pickle((2,), (1,), n_values=10**10), **DATA}),
    "a tensor beyond its storage": zip_of({"data.pkl": tensor_pickle((2,), (1,), offset=3), **DATA}),
    "a tensor larger than its storage": zip_of({"data.pkl": tensor_pickle((10**6, 10**6), (0, 0)), **DATA}),
    "negative strides": zip_of({"data.pkl": tensor_pickle((2,), (-1,)), **DATA}),
    "no such storage": zip_of({"data.pkl": tensor_pickle((2,), (1,))}),
    "a key whose hash takes forever": zip_of({"data.pkl": HASH_BOMB}),
    "millions of instructions": zip_of({"data.pkl": b"]" * 1_000_001 + b"."}),
    "copies of one text": zip_of(
        {"data.pkl": b"\x80\x02c_codecs\nencode\nq\x00X" + (10**6).to_bytes(4, "little") + b"a" * 10**6
         + b"q\x01" + b"h\x00h\x01\x85R" * 100 + b"."}
    ),
    "colliding numbers": zip_of({"data.pkl": pickle.dumps({k * (2**61 - 1): 0 for k in range(1000)}, 2)}),
    "a long number": zip_of({"data.pkl": pickle.dumps({"a": 1 << 10**5}, 2)}),
    "bytes that are not there": zip_of({"data.pkl": b"\x80\x05\x96" + (10**10).to_bytes(8, "little") + b"."}),
    "no archive": b"PK\x03\x04" + b"a" * 100,
}  # fmt: skip


@pytest.mark.parametrize("name", HOSTILE)
def test_claims_are_refused_at_once(tmp_path: Path, name: str) -> None:
    (tmp_path / "a.pth").write_bytes(HOSTILE[name])
    with pytest.raises(ModelError, match=r"more than tensors|damaged or truncated|contains no tensors") as caught:
        read_foreign(tmp_path / "a.pth")
    assert "a.pth" in str(caught.value)


@pytest.mark.parametrize("is_zip", [True, False])
def test_every_truncation_is_noticed(tmp_path: Path, is_zip: bool) -> None:
    torch.save({"model": CONTENT["model"]}, tmp_path / "a.pth", _use_new_zipfile_serialization=is_zip)
    content = (tmp_path / "a.pth").read_bytes()
    for end in range(1, len(content), 61):
        (tmp_path / "b.pth").write_bytes(content[:end])
        with pytest.raises(ModelError):
            read_foreign(tmp_path / "b.pth")
