"""Torch's distributed-checkpoint files, written plainly and read without trusting them.

`.metadata` is a pickle, and torch's reader unpickles whatever stands in it; a checkpoint that came
from someone else could run code. Here only the classes that torch's writer really uses are let
through, Python objects stored among the tensors are refused, and no entry may point outside the
checkpoint's folder. The tensors themselves are read by `torch.load(weights_only=True)`.
"""

from __future__ import annotations

import io
import os
import pickle
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from math import prod
from pathlib import Path, PurePath
from typing import Any, cast

import torch
from torch.distributed.checkpoint.filesystem import (
    FileSystem,
    FileSystemReader,
    FileSystemWriter,
)
from torch.distributed.checkpoint.metadata import (
    BytesStorageMetadata,
    Metadata,
    MetadataIndex,
    StorageMeta,
    TensorStorageMetadata,
)
from torch.distributed.checkpoint.planner import SavePlan

from triax.checkpoint.cover import check_cover
from triax.checkpoint.unpickling import PlainUnpickler, enum_member
from triax.common.errors import UserError
from triax.common.files import open_regular, read_regular

METADATA_FILE = ".metadata"
_MOST_BYTES = 1 << 28
"""Of `.metadata`: some two million parts of tensors."""

_ALLOWED = {
    ("torch", "Size"),
    ("torch.serialization", "_get_layout"),
    ("torch.distributed.checkpoint.filesystem", "_StorageInfo"),
    *(
        ("torch.distributed.checkpoint.metadata", name)
        for name in (
            "BytesStorageMetadata",
            "ChunkStorageMetadata",
            "Metadata",
            "MetadataIndex",
            "StorageMeta",
            "TensorProperties",
            "TensorStorageMetadata",
            "_MEM_FORMAT_ENCODING",
        )
    ),
}


class ShardWriter(FileSystemWriter):
    """Writes one file per rank into a folder without a checkpoint in it.

    Making the files durable and the folder a checkpoint is the caller's part.
    """

    def __init__(self, folder: Path) -> None:
        # Tensors arrive on the CPU: nothing is to be copied ahead from a GPU.
        super().__init__(folder, sync_files=False, per_thread_copy_ahead=0, overwrite=False)

    def storage_meta(self) -> StorageMeta:
        """Torch's writer stores its path here, a class more for the reader to let through."""
        return StorageMeta(save_id=self.save_id)

    def prepare_local_plan(self, plan: SavePlan) -> SavePlan:
        """Torch's writer makes and looks at the folder here, on every rank; it is there."""
        return plan


ShardMap = tuple[Metadata, Mapping[str, int]]
"""Where each tensor's parts lie, and the bytes that each file must have at least."""


class ShardReader(FileSystemReader):
    """Reads a folder of shards; neither its `.metadata` nor its shards can run code."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self._files = _RegularFiles()
        self.fs = self._files

    def read_map(self) -> ShardMap:
        """What `.metadata` says, for this reader and for those of other processes."""
        return self.read_metadata(), self._files.least_bytes

    def take_map(self, shard_map: ShardMap) -> Metadata:
        """Go by what another process's `read_map` has found in the same folder."""
        metadata, self._files.least_bytes = shard_map
        metadata.storage_meta = StorageMeta(load_id=self.load_id)
        return metadata

    def read_metadata(self, *_args: Any, **_kwargs: Any) -> Metadata:
        """Every tensor's name, shape, dtype, and where its chunks lie.

        Raises:
            UserError: the file is missing or isn't one that triax wrote.
        """
        path = Path(self.path) / METADATA_FILE
        try:
            metadata: Metadata = _Unpickler(read_regular(path, _MOST_BYTES)).load()
            self._files.least_bytes = _check(metadata)
        except OSError as error:
            where = error.filename or path
            raise UserError(f"{where}: cannot be read: {error.strerror}") from error
        except Exception as error:  # a malformed pickle raises almost anything
            raise UserError(
                f"{path}: not a file that triax wrote ({error}); it was not loaded"
            ) from error
        metadata.storage_meta = StorageMeta(load_id=self.load_id)
        return metadata


class _RegularFiles(FileSystem):
    """Opens what is read and nothing more: of thousands of shards a rank needs a few."""

    def __init__(self) -> None:
        super().__init__()
        self.least_bytes: Mapping[str, int] = {}
        """Where the last tensor in each file ends."""

    @contextmanager
    def create_stream(self, path: str | os.PathLike[str], _mode: str) -> Iterator[io.IOBase]:
        name = Path(path).name
        with open_regular(Path(path)) as file:
            if os.fstat(file.fileno()).st_size < self.least_bytes.get(name, 0):
                raise ValueError(f"a tensor lies outside of {name}")
            yield cast(io.IOBase, file)


class _Unpickler(PlainUnpickler):
    def find_class(self, module: str, name: str) -> Any:
        if (module, name) == ("builtins", "getattr"):
            return enum_member
        is_dtype = module == "torch" and isinstance(getattr(torch, name, None), torch.dtype)
        if not is_dtype and (module, name) not in _ALLOWED:
            raise pickle.UnpicklingError(f"it asks for {module}.{name}")
        return super().find_class(module, name)


def _check(metadata: Any) -> dict[str, int]:
    """Raise ValueError, or what a half-built object raises, unless `metadata` is sound.

    Every element of every tensor must lie in exactly one chunk, and every chunk in enough bytes of
    a file: what no chunk covers would be read as whatever the memory held.

    Returns:
        The bytes that each file must have at least.
    """
    if not isinstance(metadata, Metadata):
        raise ValueError("it holds no checkpoint metadata")
    least_bytes: dict[str, int] = {}
    for name, tensor in metadata.state_dict_metadata.items():
        if not isinstance(name, str):
            raise ValueError(f"a tensor's name is a {type(name).__name__}")
        if isinstance(tensor, BytesStorageMetadata):
            raise ValueError(f"{name} is a Python object, not a tensor")
        if not isinstance(tensor, TensorStorageMetadata):
            raise ValueError(f"{name!r} is no tensor")
        if not name.isprintable() or not isinstance(tensor.properties.dtype, torch.dtype):
            raise ValueError(f"{name!r} is no tensor's name, or has no dtype")
        check_cover(name, tensor.size, [(c.offsets, c.sizes) for c in tensor.chunks])
        for chunk in tensor.chunks:
            place = metadata.storage_data[MetadataIndex(name, chunk.offsets)]
            _check_place(name, place)
            _check_extent(name, place, prod(chunk.sizes) * tensor.properties.dtype.itemsize)
            end = place.offset + place.length
            least_bytes[place.relative_path] = max(end, least_bytes.get(place.relative_path, 0))
    return least_bytes


def _check_place(name: str, place: Any) -> None:
    file = place.relative_path
    if not isinstance(file, str) or file != PurePath(file).name or file in ("", "..", "."):
        shown = repr(file) if isinstance(file, str) else f"a {type(file).__name__}"
        raise ValueError(f"{name} lies in {shown}, which is no file of this folder")
    if getattr(place, "transform_descriptors", None):
        raise ValueError(f"{name} is stored in an encoding of its own")


def _check_extent(name: str, place: Any, least: int) -> None:
    """Refuse a place that begins nowhere, or holds fewer bytes than the values have."""
    if place.offset < 0 or place.length < 0:
        raise ValueError(f"{name} lies outside of {place.relative_path}")
    if place.length < least:
        file = place.relative_path
        raise ValueError(f"{name} has {least:,} bytes, and {place.length:,} of {file}")
