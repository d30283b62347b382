"""The tensors of a TorchScript archive (OpenAI publishes CLIP so), read as data: none of its code is loaded or run.

torch.load(weights_only=True) refuses such archives and torch.jit.load would load their code. An archive is a zip whose
data.pkl holds modules as dicts of attributes and tensors as references to raw storages. A pickle may name functions to
call; here every name but the few that stand for those is refused.
"""

from __future__ import annotations

import io
import math
import pickle
import zipfile
from collections import OrderedDict
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from shards.errors import VillaError

STORAGES = {
    "DoubleStorage": torch.float64,
    "FloatStorage": torch.float32,
    "HalfStorage": torch.float16,
    "BFloat16Storage": torch.bfloat16,
    "LongStorage": torch.int64,
    "IntStorage": torch.int32,
    "ShortStorage": torch.int16,
    "CharStorage": torch.int8,
    "ByteStorage": torch.uint8,
    "BoolStorage": torch.bool,
}
BROKEN = (pickle.UnpicklingError, zipfile.BadZipFile, EOFError, KeyError, ValueError, TypeError, AttributeError)
BROKEN_MORE = (IndexError, RuntimeError, RecursionError, MemoryError, UnicodeDecodeError, OverflowError)


class _Module:
    """Any module of the archive: its attributes by name. Its class in the archive is not looked at."""

    def __init__(self) -> None:
        self.state: dict[str, Any] = {}

    def __setstate__(self, state: Any) -> None:
        self.state = state if isinstance(state, dict) else {}


class _List(list[Any]):
    """What the archive's list builders make; the contents are not needed."""

    def __init__(self, *_: Any) -> None:
        super().__init__()


def is_torchscript(path: str | Path) -> bool:
    if not zipfile.is_zipfile(path):
        return False
    with zipfile.ZipFile(path) as archive:
        return any(name.endswith("/constants.pkl") for name in archive.namelist())


def read_torchscript(path: str | Path) -> dict[str, Tensor]:
    """Parameters and buffers under the names that state_dict() gives them, on the CPU.

    Raises: VillaError when the archive is damaged, or names something that is not a tensor or a module.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            root = next(n for n in archive.namelist() if n.endswith("/data.pkl"))
            reader = _Reader(archive, root.removesuffix("data.pkl"))
            top = reader.load()
            found: dict[str, Tensor] = {}
            _walk(top, "", found)
            return found
    except VillaError as error:
        raise VillaError(f"{path}: {error}") from None
    except (*BROKEN, *BROKEN_MORE, StopIteration, OSError) as error:
        raise VillaError(f"{path} is a damaged TorchScript archive ({error}); fetch it again") from error


def _walk(module: Any, prefix: str, found: dict[str, Tensor]) -> None:
    if not isinstance(module, _Module):
        return
    for name, value in module.state.items():
        if isinstance(value, Tensor):
            found[f"{prefix}{name}"] = value
        else:
            _walk(value, f"{prefix}{name}.", found)


class _Reader(pickle.Unpickler):
    def __init__(self, archive: zipfile.ZipFile, folder: str) -> None:
        super().__init__(io.BytesIO(archive.read(f"{folder}data.pkl")))
        self.archive, self.folder = archive, folder
        self.storages: dict[str, Tensor] = {}

    def find_class(self, module: str, name: str) -> Any:
        if module == "__torch__" or module.startswith("__torch__."):
            return _Module
        if (module, name) == ("torch._utils", "_rebuild_tensor_v2"):
            return _tensor
        if (module, name) == ("collections", "OrderedDict"):
            return OrderedDict
        if module == "torch" and name in STORAGES:
            return STORAGES[name]
        if module == "torch.jit._pickle" and name.startswith("build_"):
            return _List
        raise VillaError(f"its pickle names {module}.{name}, which would run code; it is refused and nothing ran")

    def persistent_load(self, pid: Any) -> Tensor:
        _, dtype, key, _, count = pid
        if key not in self.storages:
            data = bytearray(self.archive.read(f"{self.folder}data/{key}"))
            if len(data) != int(count) * dtype.itemsize:
                raise ValueError(f"storage {key} has {len(data)} bytes, not {int(count) * dtype.itemsize}")
            self.storages[key] = torch.frombuffer(data, dtype=dtype) if data else torch.empty(0, dtype=dtype)
        return self.storages[key]


def _tensor(storage: Tensor, offset: int, size: tuple[Any, ...], stride: tuple[int, ...], *_: Any) -> Tensor:
    last = offset + sum((n - 1) * s for n, s in zip(size, stride, strict=True))
    if offset < 0 or min((*size, *stride), default=0) < 0 or (math.prod(size) and last >= len(storage)):
        raise ValueError(f"a tensor of shape {tuple(size)} reaches outside its storage of {len(storage)}")
    return torch.as_strided(storage, size, stride, offset)
