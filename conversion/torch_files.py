"""The headers of torch's pickles: `torch.save` archives of {member: {name: tensor}}.

The pickle goes through `torch.load(weights_only=True)`, so nothing in it is ever executed, under a `FakeTensorMode`,
which makes tensors of shape, dtype and file offset without data.
"""

import pickle
import re
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from .lazy_files import CheckpointError, LazyFile, StoredTensor
from .operations import TensorSpec
from .source_file import FileState
from .torch_zip import read_records


def open_torch_file(path: Path, member: str) -> tuple[LazyFile, dict[str, Any]]:
    """Opens a `torch.save` file of the form {member: {name: tensor}, ...}.

    Args:
        path: The file.
        member: Key under which the tensors lie.

    Returns:
        The lazy file, and the other entries of the outer dictionary.

    Raises:
        CheckpointError: missing, cut short, a legacy (non-zip) file, not tensors (nothing is executed), not of that
            form.
    """
    _check_is_zip(path)
    state = FileState.of(path)
    loaded = _load_headers(path)
    if not isinstance(loaded, dict) or not isinstance(loaded.get(member), dict):
        found = f"keys {sorted(map(str, loaded))[:8]}" if isinstance(loaded, dict) else f"a {type(loaded).__name__}"
        raise CheckpointError(
            f'{path}: expected {{"{member}": {{name: tensor}}}} as GLM-130B\'s files hold it, found {found}. '
            f'Save it again with torch.save({{"{member}": state_dict}}, path).'
        )
    records = _data_records(path)
    tensors = {}
    for name, value in loaded[member].items():
        if not isinstance(name, str) or not isinstance(value, torch.Tensor) or value.layout is not torch.strided:
            raise CheckpointError(
                f"{path}: the entry {name!r} of '{member}' is a {type(value).__name__}, not a dense tensor. Remove "
                "it and save the file again."
            )
        tensors[name] = _stored_tensor(path, name, value, records)
    rest = {key: value for key, value in loaded.items() if key != member}
    return LazyFile(path, state, tensors), rest


def _load_headers(path: Path) -> Any:
    try:
        with FakeTensorMode():
            return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        named = re.search(r"GLOBAL (\S+)", str(error))
        what = f"holds {named.group(1)}, which is no tensor" if named else "is damaged or holds more than tensors"
        raise CheckpointError(
            f"{path}: the pickle {what}. Nothing in it was executed. Copy the file again; or, if you trust it, load "
            f'it where you trust it and save {{"module": state_dict}} alone.'
        ) from error
    except (RuntimeError, EOFError, KeyError, ValueError, AttributeError, TypeError, IndexError) as error:
        first_line = (str(error).splitlines() or [type(error).__name__])[0]
        raise CheckpointError(
            f"{path}: not a readable torch checkpoint ({first_line}). Copy the file again."
        ) from error


def _check_is_zip(path: Path) -> None:
    if not path.is_file():
        raise CheckpointError(f"{path}: no such file. Copy the complete checkpoint.")
    with path.open("rb") as file:
        start = file.read(4)
    if zipfile.is_zipfile(path):
        return
    if start == b"PK\x03\x04":
        raise CheckpointError(
            f"{path}: cut short, {path.stat().st_size} bytes without the end of the archive. Copy the file again."
        )
    if start[:1] == b"\x80":
        raise CheckpointError(
            f"{path}: a torch file in the format before torch 1.6, which cannot be read piece by piece. Save it "
            "again with torch.save(torch.load(path, weights_only=True), path)."
        )
    size = path.stat().st_size
    raise CheckpointError(
        f"{path}: not a torch checkpoint ({size} bytes, starting with {start!r}). Copy the file again."
    )


def _data_records(path: Path) -> dict[int, int]:
    """Offset -> length in bytes of every tensor record of a torch zip file."""
    records = read_records(path)
    data = {name: record for name, record in records.items() if name.startswith("data/")}
    packed = sorted(name for name, record in data.items() if not record.is_plain)
    if packed:
        raise CheckpointError(
            f"{path}: {packed[0]} is compressed, torch stores plainly. Save the file again with torch.save."
        )
    order = records.get("byteorder")
    if order is not None:
        with path.open("rb") as file:
            file.seek(order.offset)
            if file.read(order.nbytes) != b"little":
                raise CheckpointError(
                    f"{path}: written on a big-endian machine. Save it again on a little-endian one."
                )
    return {record.offset: record.nbytes for record in data.values()}


def _stored_tensor(path: Path, name: str, value: torch.Tensor, records: Mapping[int, int]) -> StoredTensor:
    storage = value.untyped_storage()
    offset = getattr(storage, "_checkpoint_offset", None)
    if offset is None:
        raise CheckpointError(
            f"torch {torch.__version__} does not tell where tensors lie in a file. Install torch 2.7 or later."
        )
    # torch computes offsets from its own layout rules; the archive's directory has the last word.
    if records.get(offset, -1) < storage.nbytes():
        raise CheckpointError(
            f"{path}: {name} does not lie where the archive's directory says. Save it again with torch.save."
        )
    spec = TensorSpec(tuple(value.shape), value.dtype)
    return StoredTensor(spec, tuple(value.stride()), offset + value.storage_offset() * value.dtype.itemsize)


__all__ = [
    "open_torch_file",
]
