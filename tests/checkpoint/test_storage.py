"""Reading checkpoints that are damaged or hostile: nothing in them may run, or reach outside."""

from __future__ import annotations

import contextlib
import importlib
import io
import itertools
import os
import pickle
from enum import Enum
from pathlib import Path
from typing import Any, BinaryIO

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.distributed.checkpoint.filesystem import _StorageInfo
from torch.distributed.checkpoint.metadata import (
    _MEM_FORMAT_ENCODING,
    BytesStorageMetadata,
    ChunkStorageMetadata,
    Metadata,
    MetadataIndex,
    TensorProperties,
    TensorStorageMetadata,
)

import triax.checkpoint.storage
from triax.checkpoint.cover import check_cover
from triax.checkpoint.folders import inspect, problems_of
from triax.checkpoint.manifest import make_manifest, read_manifest, write_manifest
from triax.checkpoint.reading import read_into, read_tensors
from triax.checkpoint.staging import whole
from triax.checkpoint.storage import ShardReader
from triax.checkpoint.writing import write_checkpoint
from triax.common.errors import UserError
from triax.common.files import open_regular

DTYPES = [
    torch.float64,
    torch.float32,
    torch.bfloat16,
    torch.float16,
    torch.float8_e4m3fn,
    torch.int64,
    torch.uint8,
    torch.bool,
]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    target = tmp_path / "checkpoint"
    write_checkpoint(target, {"model.a": whole(torch.arange(6.0).view(2, 3))}, {}, step=3)
    return target


def test_every_dtype_comes_back(tmp_path: Path) -> None:
    generator = torch.Generator().manual_seed(0)
    tensors = {
        str(dtype): torch.randint(0, 2, (3, 2), generator=generator).to(dtype) for dtype in DTYPES
    } | {"scalar": torch.tensor(2.5), "empty": torch.zeros(0, 4)}
    shards = {name: whole(tensor) for name, tensor in tensors.items()}
    write_checkpoint(tmp_path / "c", shards, {}, step=1)
    loaded = read_tensors(tmp_path / "c")
    assert loaded.keys() == tensors.keys()
    for name, tensor in tensors.items():
        assert loaded[name].dtype == tensor.dtype
        assert torch.equal(
            loaded[name].view(torch.uint8) if tensor.dim() else loaded[name],
            tensor.view(torch.uint8) if tensor.dim() else tensor,
        )


def test_a_prefix_selects(folder: Path) -> None:
    assert read_tensors(folder, prefix="optimizer.") == {}
    assert read_tensors(folder, prefix="model.").keys() == {"model.a"}


class Payload:
    """Pickles to a call of any function."""

    def __init__(self, *call: Any) -> None:
        self.call = call

    def __reduce__(self) -> tuple[Any, tuple[Any, ...]]:
        return self.call[0], self.call[1:]


def hostile_calls(mark: Path) -> list[Payload]:
    return [
        Payload(os.system, f"touch {mark}"),
        Payload(eval, f"open({str(mark)!r}, 'w')"),
        Payload(Path.touch, mark),
        Payload(importlib.import_module, "ctypes"),
        Payload(torch.load, "/dev/null"),
    ]


@pytest.mark.parametrize("index", range(5))
@pytest.mark.parametrize("place", ["alone", "within", "after"])
def test_metadata_runs_no_code(folder: Path, tmp_path: Path, index: int, place: str) -> None:
    payload = hostile_calls(tmp_path / "mark")[index]
    sound = ShardReader(folder).read_metadata()
    wrong: dict[str, Any] = {"model.a": payload}
    hostile = {
        "alone": payload,
        "within": Metadata(wrong, storage_data={}),
        "after": Metadata(sound.state_dict_metadata, planner_data=payload),
    }[place]
    (folder / ".metadata").write_bytes(pickle.dumps(hostile))
    with pytest.raises(UserError, match="not a file that triax wrote"):
        read_tensors(folder)
    assert not (tmp_path / "mark").exists()


def test_the_payload_of_these_tests_would_run(tmp_path: Path) -> None:
    """The tests above can fail: an unrestricted unpickler runs what they hold."""
    pickle.loads(pickle.dumps(hostile_calls(tmp_path / "mark")[0]))
    assert (tmp_path / "mark").exists()


class EarlyPickler(pickle.Pickler):
    """Pickles members of an Enum as Python 3.11.0 to 3.11.3 do."""

    def reducer_override(self, value: Any) -> Any:
        if isinstance(value, Enum):
            return getattr, (type(value), value.name)
        return NotImplemented


def test_checkpoints_of_early_python_3_11_are_read(folder: Path) -> None:
    """Debian 12 has 3.11.2; its pickles ask for `getattr`, which no other place gets."""
    metadata, written = ShardReader(folder).read_metadata(), io.BytesIO()
    EarlyPickler(written).dump(metadata)
    assert b"getattr" in written.getvalue()
    before = read_tensors(folder)
    (folder / ".metadata").write_bytes(written.getvalue())
    after = read_tensors(folder)
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)


@pytest.mark.parametrize(
    "call",
    [
        Payload(getattr, Metadata, "__init__"),
        Payload(getattr, torch.Size, "__new__"),
        Payload(getattr, _MEM_FORMAT_ENCODING, "__class__"),
        Payload(getattr, _MEM_FORMAT_ENCODING, "no_member"),
        Payload(getattr, "text", "format"),
    ],
)
def test_getattr_gives_members_of_an_enum_alone(folder: Path, call: Payload) -> None:
    wrong: dict[str, Any] = {"model.a": call}
    (folder / ".metadata").write_bytes(pickle.dumps(Metadata(wrong, storage_data={})))
    with pytest.raises(UserError, match="not a file that triax wrote"):
        read_tensors(folder)


def test_shards_run_no_code(folder: Path, tmp_path: Path) -> None:
    mark = tmp_path / "mark"
    metadata = ShardReader(folder).read_metadata()
    torch.save(Payload(os.system, f"touch {mark}"), folder / "__0_0.distcp")
    (index,) = metadata.storage_data
    metadata.storage_data[index].length = (folder / "__0_0.distcp").stat().st_size
    (folder / ".metadata").write_bytes(pickle.dumps(metadata))
    with pytest.raises(UserError, match="cannot be read"):
        read_tensors(folder)
    assert not mark.exists()


def test_python_objects_are_refused(folder: Path) -> None:
    metadata = ShardReader(folder).read_metadata()
    metadata.state_dict_metadata["extra"] = BytesStorageMetadata()
    (folder / ".metadata").write_bytes(pickle.dumps(metadata))
    with pytest.raises(UserError, match="extra is a Python object"):
        read_into(folder, {"model.a": torch.zeros(2, 3)})


def tensor_of(metadata: Metadata) -> TensorStorageMetadata:
    found = metadata.state_dict_metadata["model.a"]
    assert isinstance(found, TensorStorageMetadata)
    return found


def tensor_metadata(**place: Any) -> Metadata:
    size = torch.Size([2, 3])
    offsets = torch.Size([0, 0])
    chunk = ChunkStorageMetadata(offsets, size)
    sound: dict[str, Any] = {"relative_path": "__0_0.distcp", "offset": 0, "length": 1}
    return Metadata(
        {"model.a": TensorStorageMetadata(TensorProperties(torch.float32), size, [chunk])},
        storage_data={MetadataIndex("model.a", offsets): _StorageInfo(**sound | place)},
    )


@pytest.mark.parametrize("file", ["/etc/passwd", "../x", "a/../../x", "sub/x", "..", ".", "", 7])
def test_no_entry_points_outside(folder: Path, file: Any) -> None:
    (folder / ".metadata").write_bytes(pickle.dumps(tensor_metadata(relative_path=file)))
    with pytest.raises(UserError, match="no file of this folder"):
        ShardReader(folder).read_metadata()


def test_encodings_of_their_own_are_refused(folder: Path) -> None:
    hostile = tensor_metadata(transform_descriptors=["rot13"])
    (folder / ".metadata").write_bytes(pickle.dumps(hostile))
    with pytest.raises(UserError, match="encoding of its own"):
        ShardReader(folder).read_metadata()


def test_a_tensor_with_parts_missing_is_refused(folder: Path) -> None:
    metadata = tensor_metadata()
    tensor_of(metadata).chunks[0].sizes = torch.Size([1, 3])
    (folder / ".metadata").write_bytes(pickle.dumps(metadata))
    with pytest.raises(UserError, match="parts missing"):
        ShardReader(folder).read_metadata()


def chunked(folder: Path, *chunks: tuple[list[int], list[int]]) -> None:
    """Let the tensor (2, 3) consist of these chunks, all of them the file's one tensor."""
    metadata = ShardReader(folder).read_metadata()
    [place] = metadata.storage_data.values()
    parts = [ChunkStorageMetadata(torch.Size(o), torch.Size(s)) for o, s in chunks]
    tensor_of(metadata).chunks = parts
    metadata.storage_data = {MetadataIndex("model.a", part.offsets): place for part in parts}
    (folder / ".metadata").write_bytes(pickle.dumps(metadata))


@pytest.mark.parametrize(
    "chunks",
    [
        [([0, 0], [1, 3]), ([0, 1], [1, 2]), ([1, 2], [1, 1])],
        [([0, 0], [2, 2]), ([0, 1], [2, 1])],
        [([0, 0], [2, 3]), ([0, 0], [0, 3]), ([-1, 0], [1, 3])],
        [([1, 0], [2, 3])],
        [([0, 0], [2, 4]), ([0, 0], [2, -1])],
        [([0, 0], [-2, -3])],
        [([0], [6])],
        [],
    ],
)
def test_every_element_is_covered_once_or_nothing_is_read(
    folder: Path, chunks: list[tuple[list[int], list[int]]]
) -> None:
    """What no chunk covers would be whatever the memory held, in an export too."""
    chunked(folder, *chunks)
    with pytest.raises(UserError, match=r"has (a )?parts? |another number of dimensions"):
        read_tensors(folder)


def test_sound_chunks_in_any_order_are_read(folder: Path) -> None:
    chunked(folder, ([0, 0], [2, 3]), ([2, 0], [0, 3]))
    assert torch.equal(read_tensors(folder)["model.a"], torch.arange(6.0).view(2, 3))


@settings(deadline=None)
@given(data=st.data())
def test_a_cover_is_known_as_counting_knows_it(data: st.DataObject) -> None:
    size = data.draw(st.lists(st.integers(1, 4), min_size=1, max_size=3))
    rectangles = [([0] * len(size), size)]
    for _ in range(data.draw(st.integers(0, 5))):
        offsets, extents = rectangles.pop(data.draw(st.integers(0, len(rectangles) - 1)))
        dim = data.draw(st.integers(0, len(size) - 1))
        cut = data.draw(st.integers(0, extents[dim]))
        first, second = list(extents), list(extents)
        first[dim], second[dim] = cut, extents[dim] - cut
        moved = list(offsets)
        moved[dim] += cut
        rectangles += [(list(offsets), first), (moved, second)]
    for _ in range(data.draw(st.integers(0, 2))):
        rectangle = data.draw(st.sampled_from(rectangles))[data.draw(st.integers(0, 1))]
        rectangle[data.draw(st.integers(0, len(size) - 1))] += data.draw(st.integers(-1, 1))
    counts = torch.zeros(size)
    is_within = True
    for offsets, extents in rectangles:
        ends = [o + e for o, e in zip(offsets, extents, strict=True)]
        is_within = is_within and min(*offsets, *extents) >= 0
        is_within = is_within and all(e <= s for e, s in zip(ends, size, strict=True))
        counts[tuple(slice(max(o, 0), e) for o, e in zip(offsets, ends, strict=True))] += 1
    is_cover = is_within and bool((counts == 1).all())
    with contextlib.nullcontext() if is_cover else pytest.raises(ValueError, match="has "):
        check_cover("x", size, rectangles)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"offset": 10**6}, "lies outside of __0_0.distcp"),
        ({"offset": -1}, "lies outside of __0_0.distcp"),
        ({"length": 10**15}, "lies outside of __0_0.distcp"),
        ({"length": 3}, "has 24 bytes, and 3 of __0_0.distcp"),
    ],
)
def test_a_place_holds_what_it_must(folder: Path, change: dict[str, int], words: str) -> None:
    metadata = ShardReader(folder).read_metadata()
    [place] = metadata.storage_data.values()
    vars(place).update(change)
    (folder / ".metadata").write_bytes(pickle.dumps(metadata))
    with pytest.raises(UserError, match=words):
        read_tensors(folder)


def test_no_file_is_opened_that_is_not_read(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each of thousands of ranks would open each of thousands of files."""
    opened: list[str] = []

    def open_counted(path: Path) -> BinaryIO:
        opened.append(path.name)
        return open_regular(path)

    monkeypatch.setattr(triax.checkpoint.storage, "open_regular", open_counted)
    read_into(folder, {})
    assert opened == []
    assert list(read_tensors(folder)) == ["model.a"]
    assert opened.count("__0_0.distcp") == 1


def test_a_shape_beyond_all_memory_is_refused_before_it_is_made(folder: Path) -> None:
    metadata = ShardReader(folder).read_metadata()
    tensor = tensor_of(metadata)
    tensor.size = tensor.chunks[0].sizes = torch.Size([2**40, 2**10])
    (folder / ".metadata").write_bytes(pickle.dumps(metadata))
    with pytest.raises(UserError, match=r"bytes, and .* of __0_0"):
        read_tensors(folder)


@pytest.mark.parametrize("file", [".metadata", "__0_0.distcp", "manifest.json"])
@pytest.mark.parametrize("kind", ["pipe", "device", "link to a pipe"])
def test_only_regular_files_are_opened(folder: Path, file: str, kind: str) -> None:
    (folder / file).unlink()
    if kind == "pipe":
        os.mkfifo(folder / file)
    elif kind == "device":
        (folder / file).symlink_to("/dev/zero")
    else:
        os.mkfifo(folder / "pipe")
        (folder / file).symlink_to("pipe")
    [problem] = problems_of(inspect(folder))
    assert "not a regular file" in problem
    if file != "manifest.json":
        with pytest.raises(UserError, match="not a regular file"):
            read_tensors(folder)


def test_names_that_a_terminal_would_obey_are_refused(folder: Path) -> None:
    metadata = ShardReader(folder).read_metadata()
    metadata.state_dict_metadata = {"\x1b[2Jmodel.a": metadata.state_dict_metadata["model.a"]}
    (folder / ".metadata").write_bytes(pickle.dumps(metadata))
    with pytest.raises(UserError, match="is no tensor's name") as refused:
        read_tensors(folder)
    assert "\x1b" not in str(refused.value)
    files = {"\x1b[2Jx": {"bytes": 1, "xxh3_128": "0" * 32}}
    rewritten(folder, files=files)
    assert "\x1b" not in problems_of(inspect(folder))[0]


@settings(deadline=None, max_examples=300)
@given(data=st.data())
def test_random_damage_gives_an_error_or_a_sound_result(
    data: st.DataObject, tmp_path_factory: pytest.TempPathFactory
) -> None:
    folder = tmp_path_factory.getbasetemp() / "fuzzed"
    if not folder.exists():
        write_checkpoint(folder, {"model.a": whole(torch.zeros(2, 3))}, {"x": 1.5}, step=3)
        (folder / "kept.metadata").write_bytes((folder / ".metadata").read_bytes())
    content = bytearray((folder / "kept.metadata").read_bytes())
    for _ in range(data.draw(st.integers(1, 4))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    (folder / ".metadata").write_bytes(content[: data.draw(st.integers(0, len(content)))])
    with contextlib.suppress(UserError):
        read_into(folder, {"model.a": torch.zeros(2, 3)})


# --- the manifest


def test_manifest_round_trip(tmp_path: Path) -> None:
    record = {"nan": float("inf"), "nested": [{"a": None}], "text": "å\n", "big": 2**70}
    manifest = make_manifest(5, record, {})
    write_manifest(tmp_path, manifest)
    assert read_manifest(tmp_path) == manifest
    assert -1 <= manifest.age_seconds < 60


@pytest.mark.parametrize(
    "text",
    [
        "",
        "{",
        "null",
        "[]",
        "3",
        '{"manifest": {}}',
        '{"manifest": null, "xxh3_128": ""}',
        '{"manifest": {"format_version": 1}, "xxh3_128": ""}',
        "[" * 100_000,
        "\0\1\2",
        '{"manifest": {"format_version": [1]}, "xxh3_128": 5}',
    ],
)
def test_a_malformed_manifest_is_the_users_to_mend(folder: Path, text: str) -> None:
    (folder / "manifest.json").write_text(text)
    with pytest.raises(UserError, match=r"manifest\.json"):
        read_manifest(folder)
    assert len(problems_of(inspect(folder))) == 1


def rewritten(folder: Path, **changes: Any) -> None:
    """A manifest with a right checksum, and other contents."""
    manifest = read_manifest(folder)
    write_manifest(folder, manifest.model_copy(update=changes))


def test_a_later_format_is_named(folder: Path) -> None:
    rewritten(folder, format_version=2)
    with pytest.raises(UserError, match="format version 2, this triax reads version 1"):
        read_manifest(folder)


@pytest.mark.parametrize(
    "changes",
    [
        {"step": -1},
        {"step": "3"},
        {"created": "yesterday"},
        {"created": "2026-01-01T00:00:00"},
        {"record": []},
        {"files": {"../x": {"bytes": 1, "xxh3_128": "0" * 32}}},
        {"files": {"/etc/passwd": {"bytes": 1, "xxh3_128": "0" * 32}}},
        {"files": {"x": {"bytes": -1, "xxh3_128": "0" * 32}}},
        {"files": {"x": {"bytes": 1, "xxh3_128": "short"}}},
        {"format": "other"},
    ],
)
@pytest.mark.filterwarnings("ignore:Pydantic serializer warnings")
def test_wrong_fields_are_named(folder: Path, changes: dict[str, Any]) -> None:
    rewritten(folder, **changes)
    with pytest.raises(UserError, match=next(iter(changes))):
        read_manifest(folder)


def global_of(module: str, name: str) -> bytes:
    words = (part.encode() for part in (module, name))
    texts = b"".join(pickle.SHORT_BINUNICODE + bytes([len(word)]) + word for word in words)
    return texts + pickle.STACK_GLOBAL


INDEX = global_of("torch.distributed.checkpoint.metadata", "MetadataIndex")
NESTED = pickle.EMPTY_TUPLE + pickle.MEMOIZE + b"".join(
    pickle.BINGET + bytes([number]) + pickle.TUPLE2 + pickle.MEMOIZE for number in range(100)
)  # fmt: skip
"""Each tuple holds the one before twice."""


@pytest.mark.parametrize(
    "operations",
    [
        pickle.NONE + pickle.LONG_BINPUT + (2**32 - 16).to_bytes(4, "little"),
        pickle.BINUNICODE + (2**32 - 16).to_bytes(4, "little"),
        pickle.EMPTY_DICT + NESTED + pickle.NONE + pickle.SETITEM,
        pickle.EMPTY_DICT + pickle.MARK + NESTED + pickle.NONE + pickle.SETITEMS,
        INDEX + NESTED + pickle.REDUCE,
        INDEX + NESTED + pickle.NEWOBJ,
        global_of("torch.serialization", "_get_layout") + NESTED + pickle.TUPLE1 + pickle.REDUCE,
        INDEX + pickle.NONE + pickle.EMPTY_DICT + pickle.SHORT_BINUNICODE + b"\x08__hash__"
        + pickle.NONE + pickle.SETITEM + pickle.TUPLE2 + pickle.BUILD,
        INDEX + pickle.EMPTY_DICT + pickle.BUILD,
    ],
    ids=["memo", "length", "key", "keys", "call", "object", "layout", "class", "class-dict"],
)  # fmt: skip
def test_metadata_that_costs_all_memory_or_time_or_changes_a_class(
    folder: Path, operations: bytes
) -> None:
    (folder / ".metadata").write_bytes(pickle.PROTO + b"\x04" + operations + pickle.STOP)
    with pytest.raises(UserError, match="not a file that triax wrote"):
        ShardReader(folder).read_metadata()
    assert hash(MetadataIndex("a"))


def test_many_parts_cost_no_more_than_their_number() -> None:
    """Against one another these would be compared for minutes."""
    places = list(itertools.product(range(40), repeat=3))
    parts = [(place, (1, 1, 1)) for place in places]
    check_cover("x", (40, 40, 40), parts)
    with pytest.raises(ValueError, match="x has parts missing, or parts that overlap"):
        check_cover("x", (40, 40, 40), [*parts[1:], parts[1]])


@pytest.mark.parametrize(
    ("size", "parts"),
    [
        ((2.0,), [((0,), (2,))]),
        ((2,), [((0,), (True,)), ((1,), (1,))]),
        (((2,),), [((0,), (2,))]),
        ((1,) * 60, [((0,) * 60, (1,) * 60)]),
        ((), [((), ()), ((), ())]),
    ],
)
def test_sizes_of_other_kinds_are_refused(size: Any, parts: Any) -> None:
    with pytest.raises(ValueError, match="x has "):
        check_cover("x", size, parts)
