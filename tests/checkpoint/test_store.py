"""CheckpointStore: what is on disk after every kind of trouble, with real processes and files."""

from __future__ import annotations

import errno
import math
import os
import shutil
import signal
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor, Placement, Replicate, Shard, distribute_tensor

from triax.checkpoint import staging, writing
from triax.checkpoint.folders import CheckpointInfo, inspect, problems_of, resolve_checkpoint
from triax.checkpoint.reading import read_tensors
from triax.checkpoint.storage import ShardWriter
from triax.checkpoint.store import CheckpointStore, SaveOutcome
from triax.common.errors import UserError
from triax.parallel import agreement

POINTS = (
    "save-staged",
    "save-shard-written",
    "save-before-fsync",
    "save-before-manifest",
    "save-before-rename",
    "save-done",
)


def tensors_at(step: int) -> dict[str, torch.Tensor]:
    """What a run might hold at a step: uneven over 2 and 4 ranks, one smaller than 4, a scalar."""
    generator = torch.Generator().manual_seed(step)
    return {
        "model.a.weight": torch.randn(7, 5, generator=generator),
        "model.small.weight": torch.randn(3, generator=generator),
        "model.half.weight": torch.randn(8, 2, generator=generator).bfloat16(),
        "optimizer.a.weight.exp_avg": torch.randn(7, 5, generator=generator),
        "optimizer.a.weight.step": torch.tensor(float(step)),
    }


def make_store(
    directory: Path, group: dist.ProcessGroup | None = None, **changes: Any
) -> CheckpointStore:
    options: dict[str, Any] = {"keep": 3, "asynchronous": True, "deadline_seconds": 60.0}
    return CheckpointStore(directory, group=group, **options | changes)


def save_steps(directory: Path, *steps: int, **changes: Any) -> CheckpointStore:
    store = make_store(directory, **changes)
    for step in steps:
        store.save(step, tensors_at(step), {"step": step, "tokens": step * 100})
        assert waited(store).error is None
    return store


def waited(store: CheckpointStore) -> SaveOutcome:
    """The outcome of the save that is under way."""
    outcome = store.wait()
    assert outcome is not None
    return outcome


def newest(store: CheckpointStore) -> CheckpointInfo:
    found = store.newest_good()
    assert found is not None
    return found


def equal(left: dict[str, torch.Tensor], right: dict[str, torch.Tensor]) -> bool:
    return left.keys() == right.keys() and all(torch.equal(left[k], right[k]) for k in left)


def empty_like(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {name: torch.full_like(tensor, -1) for name, tensor in tensors.items()}


# --- one process


def test_save_load_round_trip_is_bitwise(tmp_path: Path) -> None:
    store = make_store(tmp_path)
    tensors = tensors_at(1)
    record = {"tokens": 7, "loss": math.inf, "lr": 0.1 + 0.2, "nested": {"cursor": [1, 2**60]}}
    store.save(1, tensors, record)
    outcome = waited(store)
    assert outcome.error is None and outcome.step == 1 and outcome.num_bytes > 0
    loaded = empty_like(tensors)
    assert store.load(newest(store), loaded) == record
    assert equal(loaded, tensors)
    assert store.poll() is None and store.wait() is None


def test_tensors_and_record_may_change_once_save_returns(tmp_path: Path) -> None:
    go_on = threading.Event()
    store = make_store(
        tmp_path, on_point=lambda name, _: name != "save-shard-written" or go_on.wait(10)
    )
    tensors, record = tensors_at(1), {"list": [1]}
    # `save-shard-written` is too late to see torn data: hold the save before its first write.
    entered = threading.Event()
    write = writing._make_empty

    def slow(target: Path) -> Path:
        entered.set()
        go_on.wait(10)
        return write(target)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(writing, "_make_empty", slow)
        store.save(1, tensors, record)
        assert entered.wait(10) and store.poll() is None
        for tensor in tensors.values():
            tensor.fill_(99)
        record["list"].append(2)
        go_on.set()
        assert waited(store).error is None
    assert equal(read_tensors(tmp_path / "step-00000001"), tensors_at(1))
    manifest = newest(store).manifest
    assert manifest is not None and manifest.record == {"list": [1]}


def test_staging_buffers_are_reused() -> None:
    stager = staging.Stager()
    first = stager.stage(tensors_at(1))
    second = stager.stage(tensors_at(2))
    assert all(first[name][0].data is second[name][0].data for name in first)
    assert equal({name: shard.data for name, [shard] in second.items()}, tensors_at(2))


def test_no_checkpoint_is_none_and_not_an_error(tmp_path: Path) -> None:
    assert make_store(tmp_path / "nowhere").newest_good() is None
    assert make_store(tmp_path).entries() == []
    save_steps(tmp_path, 5)
    assert make_store(tmp_path).newest_good(before=5) is None


def test_retention_keeps_the_newest(tmp_path: Path) -> None:
    store = save_steps(tmp_path, 10, 20, 30, 40, keep=2)
    assert [info.step for info in store.entries()] == [30, 40]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["step-00000030", "step-00000040"]


def test_retention_after_a_rollback_keeps_what_was_just_saved(tmp_path: Path) -> None:
    save_steps(tmp_path, 10, 20, 30, keep=3)
    store = save_steps(tmp_path, 15, keep=1)
    assert [info.step for info in store.entries()] == [15, 20, 30]
    store.discard_after(15)
    assert [info.step for info in store.entries()] == [15]


def test_saving_the_same_again_changes_nothing(tmp_path: Path) -> None:
    store = save_steps(tmp_path, 10)
    before = (tmp_path / "step-00000010" / "__0_0.distcp").stat()
    store.save(10, tensors_at(10), {"step": 10, "tokens": 1000})
    assert waited(store).error is None
    after = (tmp_path / "step-00000010" / "__0_0.distcp").stat()
    assert (before.st_ino, before.st_mtime_ns) == (after.st_ino, after.st_mtime_ns)


def test_another_record_replaces_the_same_step(tmp_path: Path) -> None:
    """After a rollback a step number comes again, on another trajectory."""
    store = save_steps(tmp_path, 10)
    store.save(10, tensors_at(11), {"step": 10, "tokens": 7})
    assert waited(store).error is None
    assert equal(read_tensors(tmp_path / "step-00000010"), tensors_at(11))
    assert [path.name for path in tmp_path.iterdir()] == ["step-00000010"]


def flip_bit(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1])


def lengthen(path: Path) -> None:
    path.write_bytes(path.read_bytes() + b"\0")


DAMAGES = {
    "flipped bit in a shard": ("__0_0.distcp", flip_bit, "checksum"),
    "flipped bit in the metadata": (".metadata", flip_bit, "checksum"),
    "flipped bit in the manifest": ("manifest.json", flip_bit, "manifest.json"),
    "truncated shard": ("__0_0.distcp", cut, "bytes, expected"),
    "lengthened shard": ("__0_0.distcp", lengthen, "bytes, expected"),
    "truncated manifest": (
        "manifest.json",
        cut_half := lambda p: p.write_bytes(p.read_bytes()[:99]),
        "manifest.json",
    ),
    "missing shard": ("__0_0.distcp", Path.unlink, "missing"),
    "missing metadata": (".metadata", Path.unlink, "missing"),
    "missing manifest": ("manifest.json", Path.unlink, "no manifest.json"),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_bad_checkpoint_is_told_and_the_previous_taken(tmp_path: Path, damage: str) -> None:
    save_steps(tmp_path, 10, 20)
    file, act, expected = DAMAGES[damage]
    act(tmp_path / "step-00000020" / file)
    said: list[str] = []
    store = make_store(tmp_path, say=said.append)
    info = newest(store)
    assert info.step == 10
    assert len(said) == 1 and "step-00000020" in said[0] and expected in said[0]
    assert any(expected in problem for problem in problems_of(inspect(tmp_path / "step-00000020")))
    assert resolve_checkpoint(tmp_path) == tmp_path / "step-00000010"
    assert make_store(tmp_path / "another", say=said.append).good_at(tmp_path) == info
    assert said[0] == said[1]
    # The next save of that step puts a good one in its place.
    store.save(20, tensors_at(20), {"step": 20, "tokens": 2000})
    assert waited(store).error is None
    assert problems_of(inspect(tmp_path / "step-00000020")) == []


def test_a_digit_changed_in_the_record_is_found(tmp_path: Path) -> None:
    save_steps(tmp_path, 10)
    path = tmp_path / "step-00000010" / "manifest.json"
    path.write_text(path.read_text().replace('"tokens": 1000', '"tokens": 1001'))
    assert "checksum" in problems_of(inspect(path.parent))[0]


def test_all_bad_is_an_error_not_a_fresh_start(tmp_path: Path) -> None:
    save_steps(tmp_path, 10, 20)
    for step in (10, 20):
        flip_bit(tmp_path / f"step-{step:08d}" / "__0_0.distcp")
    with pytest.raises(UserError, match="none of its 2 checkpoints is good"):
        make_store(tmp_path, say=lambda _: None).newest_good()
    with pytest.raises(UserError, match="no good checkpoint"):
        resolve_checkpoint(tmp_path)
    with pytest.raises(UserError, match="no good checkpoint"):
        make_store(tmp_path / "another", say=lambda _: None).good_at(tmp_path)
    assert resolve_checkpoint(tmp_path, contents=False) == tmp_path / "step-00000020"


def test_another_model_is_refused_with_both_shapes(tmp_path: Path) -> None:
    store = save_steps(tmp_path, 10)
    wanted = empty_like(tensors_at(10))
    wanted["model.a.weight"] = torch.zeros(7, 6)
    wanted["model.new.weight"] = torch.zeros(2)
    with pytest.raises(UserError, match="another model") as caught:
        store.load(newest(store), wanted)
    assert "model.a.weight: (7, 6) here, (7, 5) in the checkpoint" in str(caught.value)
    assert "model.new.weight: (2,) here, not in the checkpoint" in str(caught.value)


def test_another_optimizer_is_told_from_another_model(tmp_path: Path) -> None:
    store = save_steps(tmp_path, 10)
    wanted = empty_like(tensors_at(10)) | {"optimizer.a.weight.exp_avg_sq": torch.zeros(7, 5)}
    with pytest.raises(UserError, match=r"another optimizer:(.|\n)*Use the \[optimizer\] section"):
        store.load(newest(store), wanted)


def test_some_of_the_tensors_in_another_dtype(tmp_path: Path) -> None:
    store = save_steps(tmp_path, 10)
    wanted = {"model.a.weight": torch.nn.Parameter(torch.zeros(7, 5, dtype=torch.bfloat16))}
    store.load(newest(store), wanted)
    assert torch.equal(wanted["model.a.weight"], tensors_at(10)["model.a.weight"].bfloat16())


@pytest.mark.parametrize("asynchronous", [True, False])
def test_a_save_that_cannot_write_is_an_outcome(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, asynchronous: bool
) -> None:
    store = save_steps(tmp_path, 10, asynchronous=asynchronous)

    def full(*_args: Any, **_kwargs: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(ShardWriter, "write_data", full)
        store.save(20, tensors_at(20), {})
        outcome = waited(store)
    assert outcome.step == 20 and "No space left" in str(outcome.error)
    assert [path.name for path in tmp_path.iterdir()] == ["step-00000010"]
    store.save(30, tensors_at(30), {})
    assert waited(store).error is None


def test_free_space_is_looked_at_before(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = make_store(tmp_path)
    usage = shutil.disk_usage(tmp_path)._replace(free=100)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage)
    store.save(1, tensors_at(1), {})
    assert "no space for the checkpoint" in str(waited(store).error)
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_cannot_be_made_is_an_outcome(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    store = make_store(tmp_path / "file" / "checkpoints")
    store.save(1, tensors_at(1), {})
    assert "Not a directory" in str(waited(store).error)


def test_staging_that_fails_is_an_outcome(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = make_store(tmp_path)

    def no_memory(*_args: Any) -> None:
        raise MemoryError("no more")

    monkeypatch.setattr(store._stager, "stage", no_memory)
    store.save(1, tensors_at(1), {})
    assert "no more" in str(waited(store).error)


def test_a_record_that_json_cannot_hold_is_our_fault(tmp_path: Path) -> None:
    with pytest.raises(TypeError):
        make_store(tmp_path).save(1, tensors_at(1), {"path": tmp_path})


def test_a_save_past_its_deadline_is_not_made_valid(tmp_path: Path) -> None:
    def dawdle(name: str, _step: int) -> None:
        if name == "save-before-fsync":
            time.sleep(0.3)

    store = make_store(tmp_path, deadline_seconds=0.2, on_point=dawdle)
    store.save(1, tensors_at(1), {})
    assert "deadline" in str(waited(store).error)
    assert list(tmp_path.iterdir()) == []


def test_a_stuck_save_hangs_nothing_and_may_come_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("triax.checkpoint.store._GRACE_SECONDS", 0.1)
    unstuck = threading.Event()
    store = make_store(
        tmp_path,
        deadline_seconds=0.2,
        on_point=lambda name, step: step > 1 or name != "save-before-fsync" or unstuck.wait(20),
    )
    store.save(1, tensors_at(1), {})
    outcome = waited(store)
    assert outcome.step == 1 and "deadline" in str(outcome.error)
    store.save(2, tensors_at(2), {})
    outcome = waited(store)
    assert outcome.step == 2 and "still stuck" in str(outcome.error)
    unstuck.set()
    deadline = time.monotonic() + 10
    while store._running is not None and time.monotonic() < deadline:
        store.poll()
        time.sleep(0.01)
    store.save(3, tensors_at(3), {})
    assert waited(store).error is None
    assert [info.step for info in store.entries()] == [3]


def test_poll_tells_each_outcome_once_in_order(tmp_path: Path) -> None:
    store = make_store(tmp_path)
    store.save(1, tensors_at(1), {})
    store.save(2, tensors_at(2), {})
    outcomes = [store.wait(), store.wait(), store.poll()]
    assert [o and o.step for o in outcomes] == [1, 2, None]


def test_leftovers_are_no_checkpoints_and_are_cleaned(tmp_path: Path) -> None:
    store = save_steps(tmp_path, 10)
    shutil.copytree(tmp_path / "step-00000010", tmp_path / "step-00000020.tmp")
    shutil.copytree(tmp_path / "step-00000010", tmp_path / "step-00000005.removed.tmp")
    (tmp_path / "notes.txt").write_text("mine")
    assert [info.step for info in store.entries()] == [10]
    store.clean()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["notes.txt", "step-00000010"]


def test_leftovers_of_any_kind_stop_neither_a_start_nor_a_save(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    (elsewhere / "theirs").write_text("")
    directory, said = tmp_path / "checkpoints", list[str]()
    save_steps(directory, 10)
    for name in ("step-00000010.removed.tmp", "step-00000020.tmp", "step-00000030.tmp"):
        (directory / name).mkdir()
    (directory / "step-00000005.removed.tmp").symlink_to(elsewhere)
    (directory / "step-00000006.removed.tmp").symlink_to("nowhere")
    (directory / "step-00000007.tmp").write_text("")
    (directory / "step-00000020").symlink_to("nowhere")
    (directory / "step-00000030").write_text("")

    def denied(path: Path, **_kwargs: Any) -> None:
        raise OSError(errno.EBUSY, "Device or resource busy", str(path))

    with monkeypatch.context() as patch:
        patch.setattr(shutil, "rmtree", denied)
        store = make_store(directory, say=said.append, keep=2)
        store.clean()
        assert len(said) == 5
        assert sum("busy; it stays, and the run goes on" in line for line in said) == 3
        assert sum("no folder, so it is no checkpoint" in line for line in said) == 2
        found = store.newest_good()
        assert found is not None and found.step == 10
        for step in (20, 30):
            store.save(step, tensors_at(step), {"step": step})
            outcome = waited(store)
            assert outcome is not None and outcome.error is None
        store.discard_after(20)
        assert [info.step for info in store.entries()] == [20]
        assert any("step-00000030.removed" in line for line in said)
    assert (elsewhere / "theirs").exists()
    assert equal(read_tensors(directory / "step-00000020"), tensors_at(20))
    make_store(directory).clean()
    assert [path.name for path in directory.iterdir()] == ["step-00000020"]


def test_a_removal_cut_short_leaves_no_half_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    said: list[str] = []
    store = save_steps(tmp_path, 10, keep=1, say=said.append)

    def denied(path: Path, **_kwargs: Any) -> None:
        raise PermissionError(errno.EACCES, "Permission denied", str(path))

    with monkeypatch.context() as patch:
        patch.setattr(shutil, "rmtree", denied)
        store.save(20, tensors_at(20), {})
        assert waited(store).error is None
    assert len(said) == 1 and "could not be removed" in said[0]
    assert [info.step for info in store.entries()] == [20]
    store.clean()
    assert [path.name for path in tmp_path.iterdir()] == ["step-00000020"]


# --- killed at each point


def killed_save(
    group: dist.ProcessGroup | None, directory: Path, point: str, victims: tuple[int, ...]
) -> str | None:
    rank = 0 if group is None else dist.get_rank(group)

    def kill(name: str, step: int) -> None:
        if name == point and step == 20 and rank in victims:
            os.kill(os.getpid(), signal.SIGKILL)

    store = make_store(directory, group, on_point=kill, say=lambda _: None)
    for step in (10, 20):
        store.save(step, meshed(group, step, 1), {"step": step})
        outcome = waited(store)
    return outcome.error


def check_after_a_kill(directory: Path, point: str) -> None:
    for info in make_store(directory).entries():
        assert problems_of(info) == []
        assert equal(read_tensors(info.path), tensors_at(info.step))
    store = make_store(directory, say=lambda _: None)
    info = newest(store)
    assert info.step == 20 if point == "save-done" else info.step in (10, 20)
    store.clean()
    assert not list(directory.glob("*.tmp"))
    save_steps(directory, 20)
    assert equal(read_tensors(directory / "step-00000020"), tensors_at(20))


@pytest.mark.parametrize("point", POINTS)
def test_killed_alone(tmp_path: Path, run_ranks: Any, point: str) -> None:
    directory = tmp_path / "checkpoints"
    assert run_ranks(killed_save, 1, directory, point, (0,)) == [-signal.SIGKILL]
    expected = [10, 20] if point == "save-done" else [10]
    assert [info.step for info in make_store(directory).entries()] == expected
    check_after_a_kill(directory, point)


@pytest.mark.parametrize("victims", [(0,), (1,), (0, 1)])
@pytest.mark.parametrize("point", POINTS)
def test_killed_among_two(
    tmp_path: Path, run_ranks: Any, point: str, victims: tuple[int, ...]
) -> None:
    directory = tmp_path / "checkpoints"
    results = run_ranks(killed_save, 2, directory, point, victims)
    for rank, result in enumerate(results):
        if rank in victims:
            assert result == -signal.SIGKILL
        elif point != "save-done":
            assert result is None or isinstance(result, str)
    if point in POINTS[:3]:
        assert [info.step for info in make_store(directory).entries()] == [10]
    check_after_a_kill(directory, point)


# --- layouts and several ranks


def sharded(
    tensors: dict[str, torch.Tensor], mesh: DeviceMesh, placements: Sequence[Placement]
) -> dict[str, torch.Tensor]:
    return {
        name: distribute_tensor(tensor, mesh, placements) if tensor.dim() else tensor.clone()
        for name, tensor in tensors.items()
    }


def meshed(group: dist.ProcessGroup | None, step: int, replicate: int) -> dict[str, torch.Tensor]:
    """Plain tensors for one process, else sharded over all, or over each of some replicas."""
    if group is None:
        return tensors_at(step)
    mesh = init_device_mesh("cpu", (replicate, dist.get_world_size() // replicate))
    if replicate == 1:
        return sharded(tensors_at(step), init_device_mesh("cpu", (mesh.size(),)), [Shard(0)])
    return sharded(tensors_at(step), mesh, [Replicate(), Shard(0)])


def save_sharded(group: dist.ProcessGroup | None, directory: Path, replicate: int) -> SaveOutcome:
    store = make_store(directory, group)
    store.save(10, meshed(group, 10, replicate), {"step": 10})
    return waited(store)


def load_sharded(group: dist.ProcessGroup | None, directory: Path, replicate: int) -> bool:
    store = make_store(directory, group)
    into = meshed(group, 999, replicate)
    record = store.load(newest(store), into)
    full = {n: t.full_tensor() if isinstance(t, DTensor) else t for n, t in into.items()}
    return record == {"step": 10} and equal(full, tensors_at(10))


@pytest.mark.parametrize(("saved_on", "replicate"), [(1, 1), (2, 1), (4, 2)])
def test_any_layout_loads_any_other(
    tmp_path: Path, run_ranks: Any, saved_on: int, replicate: int
) -> None:
    directory = tmp_path / "checkpoints"
    outcomes = run_ranks(save_sharded, saved_on, directory, replicate)
    assert [outcome.error for outcome in outcomes] == [None] * saved_on
    folder = directory / "step-00000010"
    assert {path.name for path in folder.glob("*.distcp")} == {
        f"__{rank}_0.distcp" for rank in range(saved_on)
    }
    assert equal(read_tensors(folder), tensors_at(10))
    assert load_sharded(None, directory, 1)
    if saved_on != 4:
        assert run_ranks(load_sharded, 4, directory, saved_on) == [True] * 4


def test_a_replicated_save_loads_on_fewer_ranks(tmp_path: Path, run_ranks: Any) -> None:
    directory = tmp_path / "checkpoints"
    run_ranks(save_sharded, 4, directory, 2)
    assert run_ranks(load_sharded, 2, directory, 1) == [True] * 2


def test_a_tensor_is_written_once_by_whichever_rank(tmp_path: Path, run_ranks: Any) -> None:
    directory = tmp_path / "checkpoints"
    run_ranks(save_sharded, 4, directory, 2)
    sizes = [path.stat().st_size for path in (directory / "step-00000010").glob("*.distcp")]
    alone = tmp_path / "alone"
    save_sharded(None, alone, 1)
    (whole,) = [path.stat().st_size for path in (alone / "step-00000010").glob("*.distcp")]
    assert sum(sizes) < 2.5 * whole  # torch's frame around each part is larger than these tensors


def fsdp_model(seed: int) -> torch.nn.Module:
    torch.manual_seed(seed)
    model: torch.nn.Module = torch.nn.Sequential(torch.nn.Linear(5, 7), torch.nn.Linear(7, 3))
    fully_shard(model, mesh=init_device_mesh("cpu", (dist.get_world_size(),)))
    return model


def save_and_load_fsdp(group: dist.ProcessGroup, directory: Path) -> bool:
    """Parameters of FSDP2, whose uneven shards are views of padded memory, trained on after."""
    saved, loaded = fsdp_model(0), fsdp_model(1)
    store = make_store(directory, group)
    store.save(1, dict(saved.named_parameters()), {})
    assert waited(store).error is None
    store.load(newest(store), dict(loaded.named_parameters()))
    inputs = torch.ones(2, 5)
    outputs = saved(inputs), loaded(inputs)
    outputs[1].sum().backward()
    return torch.equal(*outputs)


def test_fsdp_parameters(tmp_path: Path, run_ranks: Any) -> None:
    assert run_ranks(save_and_load_fsdp, 2, tmp_path / "checkpoints") == [True, True]
    names = read_tensors(tmp_path / "checkpoints" / "step-00000001").keys()
    assert names == {"0.weight", "0.bias", "1.weight", "1.bias"}


def save_stages(group: dist.ProcessGroup, directory: Path) -> bool:
    rank = dist.get_rank()
    mine = {f"model.blocks.{rank}.weight": torch.full((4, 3), float(rank))}
    store = make_store(directory, group)
    store.save(1, mine, {"rank": rank})
    assert waited(store).error is None
    info = newest(store)
    into = empty_like(mine)
    return store.load(info, into) == {"rank": 0} and equal(into, mine)


def test_pipeline_stages_hold_different_names(tmp_path: Path, run_ranks: Any) -> None:
    assert run_ranks(save_stages, 2, tmp_path / "checkpoints") == [True, True]
    assert len(read_tensors(tmp_path / "checkpoints" / "step-00000001")) == 2


def full_disk_on_one(group: dist.ProcessGroup, directory: Path, where: str) -> list[Any]:
    rank = dist.get_rank()
    store = make_store(directory, group, say=lambda _: None)
    store.save(10, meshed(group, 10, 1), {})
    first = waited(store)

    def full(*_args: Any, **_kwargs: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with pytest.MonkeyPatch.context() as patch:
        if where == "write" and rank == 1:
            patch.setattr(ShardWriter, "write_data", full)
        if where == "finish" and rank == 0:
            patch.setattr(ShardWriter, "finish", full)
        if where == "manifest" and rank == 0:
            patch.setattr(writing, "write_manifest", full)
        if where == "rename" and rank == 0:
            patch.setattr(writing, "_replace", full)
        if where == "stage" and rank == 1:
            patch.setattr(store._stager, "stage", full)
        if where == "plan" and rank == 1:
            patch.setattr(writing._Planner, "create_local_plan", full)
        store.save(20, meshed(group, 20, 1), {})
        second = waited(store)
    store.save(30, meshed(group, 30, 1), {})
    third = waited(store)
    return [first.error, second.error, third.error]


@pytest.mark.parametrize("where", ["stage", "plan", "write", "finish", "manifest", "rename"])
def test_a_failure_on_one_rank_is_told_on_all(tmp_path: Path, run_ranks: Any, where: str) -> None:
    directory = tmp_path / "checkpoints"
    results = run_ranks(full_disk_on_one, 2, directory, where)
    assert results[0] == results[1]
    failed_rank = 1 if where in ("stage", "plan", "write") else 0
    first, second, third = results[0]
    assert first is None and third is None
    assert second.startswith(f"rank {failed_rank}: OSError") and "No space left" in second
    assert sorted(path.name for path in directory.iterdir()) == ["step-00000010", "step-00000030"]


def ask_first(group: dist.ProcessGroup, fails: bool) -> list[Any] | str:
    def step() -> list[Any]:
        if fails:
            raise UserError("no room")
        return ["of rank", dist.get_rank(group)]

    with pytest.MonkeyPatch.context() as patch:
        patch.delattr(agreement, "reduce_objects")  # every rank's would be sent
        try:
            return agreement.on_first(step, group)
        except UserError as error:
            return str(error)


def test_what_the_first_rank_says_is_sent_once(run_ranks: Any) -> None:
    assert run_ranks(ask_first, 3, False) == [["of rank", 0]] * 3
    assert run_ranks(ask_first, 3, True) == ["rank 0: no room"] * 3


def stuck_on_one(group: dist.ProcessGroup, directory: Path) -> tuple[str | None, str | None, int]:
    def stuck(name: str, _step: int) -> None:
        if dist.get_rank() == 1 and name == "save-before-fsync":
            time.sleep(6)

    from triax.checkpoint import store as module

    module._GRACE_SECONDS = 0.2
    store = make_store(directory, group, deadline_seconds=0.5, on_point=stuck)
    store.save(1, meshed(group, 1, 1), {})
    first = waited(store).error
    store.save(2, meshed(group, 1, 1), {})
    return first, waited(store).error, len(store.entries())


def test_a_stuck_rank_hangs_no_one(tmp_path: Path, run_ranks: Any) -> None:
    for first, second, num_entries in run_ranks(stuck_on_one, 2, tmp_path / "checkpoints"):
        assert "deadline" in first and "still stuck" in second and num_entries == 0


def verify_damaged(group: dist.ProcessGroup, directory: Path) -> tuple[int, list[str]]:
    said: list[str] = []
    return newest(make_store(directory, group, say=said.append)).step, said


def test_every_file_is_verified_by_some_rank(tmp_path: Path, run_ranks: Any) -> None:
    directory = tmp_path / "checkpoints"
    save_steps(directory, 5)
    run_ranks(save_sharded, 2, directory, 1)
    good = tmp_path / "good"
    shutil.copytree(directory, good)
    for file in ("__0_0.distcp", "__1_0.distcp", ".metadata"):
        flip_bit(directory / "step-00000010" / file)
        (step_0, said_0), (step_1, said_1) = run_ranks(verify_damaged, 2, directory)
        assert step_0 == step_1 == 5 and said_1 == []
        assert len(said_0) == 1 and file in said_0[0]
        shutil.copy(good / "step-00000010" / file, directory / "step-00000010" / file)


def load_wrong(group: dist.ProcessGroup, directory: Path) -> str:
    store = make_store(directory, group)
    shape = (7, 5) if dist.get_rank() == 0 else (7, 6)
    try:
        store.load(newest(store), {"model.a.weight": torch.zeros(shape)})
    except UserError as error:
        return str(error)
    return ""


def test_a_load_refused_on_one_rank_is_refused_on_all(tmp_path: Path, run_ranks: Any) -> None:
    save_steps(tmp_path / "checkpoints", 10)
    first, second = run_ranks(load_wrong, 2, tmp_path / "checkpoints")
    assert first == second and "another model" in first and "(7, 6) here" in first
