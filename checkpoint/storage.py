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
from collections.abc import Iterator
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

from triax.checkpoint.cover import check_cover
from triax.checkpoint.unpickling import PlainUnpickler
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


class ShardReader(FileSystemReader):
    """Reads a folder of shards; neither its `.metadata` nor its shards can run code."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self.fs = _RegularFiles()

    def read_metadata(self, *_args: Any, **_kwargs: Any) -> Metadata:
        """Every tensor's name, shape, dtype, and where its chunks lie.

        Raises:
            UserError: the file is missing or isn't one that triax wrote.
        """
        path = Path(self.path) / METADATA_FILE
        try:
            metadata: Metadata = _Unpickler(read_regular(path, _MOST_BYTES)).load()
            _check(metadata, Path(self.path))
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
    @contextmanager
    def create_stream(self, path: str | os.PathLike[str], _mode: str) -> Iterator[io.IOBase]:
        with open_regular(Path(path)) as file:
            yield cast(io.IOBase, file)


class _Unpickler(PlainUnpickler):
    def find_class(self, module: str, name: str) -> Any:
        is_dtype = module == "torch" and isinstance(getattr(torch, name, None), torch.dtype)
        if not is_dtype and (module, name) not in _ALLOWED:
            raise pickle.UnpicklingError(f"it asks for {module}.{name}")
        return super().find_class(module, name)


def _check(metadata: Any, folder: Path) -> None:
    """Raise ValueError, or what a half-built object raises, unless `metadata` is sound.

    Every element of every tensor must lie in exactly one chunk, and every chunk in a file that is
    long enough: what no chunk covers would be read as whatever the memory held.
    """
    if not isinstance(metadata, Metadata):
        raise ValueError("it holds no checkpoint metadata")
    num_bytes: dict[str, int] = {}
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
            least = prod(chunk.sizes) * tensor.properties.dtype.itemsize
            _check_extent(name, place, least, folder, num_bytes)


def _check_place(name: str, place: Any) -> None:
    file = place.relative_path
    if not isinstance(file, str) or file != PurePath(file).name or file in ("", "..", "."):
        shown = repr(file) if isinstance(file, str) else f"a {type(file).__name__}"
        raise ValueError(f"{name} lies in {shown}, which is no file of this folder")
    if getattr(place, "transform_descriptors", None):
        raise ValueError(f"{name} is stored in an encoding of its own")


def _check_extent(
    name: str, place: Any, least: int, folder: Path, num_bytes: dict[str, int]
) -> None:
    """Refuse a place in a file that holds fewer bytes than the values have; sizes are kept."""
    file = place.relative_path
    if file not in num_bytes:
        with open_regular(folder / file) as opened:
            num_bytes[file] = os.fstat(opened.fileno()).st_size
    if not 0 <= place.offset <= place.offset + place.length <= num_bytes[file]:
        raise ValueError(f"{name} lies outside of {file}")
    if place.length < least:
        raise ValueError(f"{name} has {least:,} bytes, and {place.length:,} of {file}")
