"""A run's sources are known by their contents, whatever becomes of their paths."""

from __future__ import annotations

import json
import shutil
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from triax.common.errors import UserError
from triax.data.config import SourceConfig
from triax.data.read.blend import Blend
from triax.data.read.digest import shard_digest
from triax.data.read.identity import Identity, identify_sources
from triax.data.read.plan import whole_run
from triax.data.read.sampler import Phase, Sampler, source_names
from triax.data.read.shards import ShardWriter, find_shards, shard_prefix
from triax.data.read.source import Source

SEQ_LEN = 4
VOCAB_SIZE = 1000


def write(prefix: Path, *num_windows: int, seed: int = 0, num_written: int = 0) -> Path:
    """A series of shards with so many windows each; `num_written` of them are there already."""
    prefix.parent.mkdir(parents=True, exist_ok=True)
    for number, windows in enumerate(num_windows):
        rng = np.random.default_rng([seed, number])
        tokens = rng.integers(0, VOCAB_SIZE, windows * SEQ_LEN + 1)
        if number >= num_written:
            with ShardWriter(shard_prefix(prefix, number), np.dtype("<u2")) as writer:
                writer.add_document(tokens)
    return prefix


def known(*prefixes: Path) -> list[Identity]:
    """The identities that a start finds at these paths."""
    configs = [SourceConfig(path=str(prefix)) for prefix in prefixes]
    sources = [Source.open(prefix, SEQ_LEN, VOCAB_SIZE) for prefix in prefixes]
    return identify_sources(configs, sources)


def record_of(blend: Blend) -> dict[str, Any]:
    """What a checkpoint gives back."""
    record: dict[str, Any] = json.loads(json.dumps(blend.to_json()))
    return record


def earlier_record(phases: Sequence[Phase], paths: Sequence[Path]) -> dict[str, Any]:
    """As versions before this one wrote it: names made from paths, and the config."""
    sources = [{"path": str(path), "weight": 1.0} for path in paths]
    record = {"phases": [phase.to_json() for phase in phases]}
    return record | {"config": {"data": {"sources": sources}}}


def read(
    blend: Blend, samples: range, prefixes: Sequence[Path], seed: int = 0
) -> list[tuple[int, ...]]:
    """The tokens of samples, as training reads them."""
    sources = {
        key: Source.open(prefix, SEQ_LEN, VOCAB_SIZE)
        for key, prefix in zip(blend.keys, prefixes, strict=True)
    }
    sampler = Sampler(seed, blend.phases, blend.num_windows())
    places = [sampler.locate(sample) for sample in samples]
    return [tuple(sources[at.source].window(at.window).tokens.tolist()) for at in places]


def num_repeated(windows: Sequence[tuple[int, ...]]) -> int:
    """How many windows came a second time."""
    return len(windows) - len(set(windows))


def test_a_source_that_is_added_repeats_no_window(tmp_path: Path) -> None:
    """Its path ends alike, so the first one's shortest name changes."""
    web = write(tmp_path / "web/train", 245)
    code = write(tmp_path / "code/train", 300, seed=1)
    first = Blend.begin(known(web), whole_run(1.0))
    seen = read(first, range(120), [web])
    both = Blend.resume(record_of(first), 120, known(web, code), whole_run(1.0, 1.0))
    assert both.is_new
    assert both.keys[0] == first.keys[0]
    assert both.notes == (
        f"{web}: as before",
        f"{code}: new to this run",
        "a new phase of the blend begins at sample 120",
    )
    seen += read(both, range(120, 320), [web, code])
    assert num_repeated(seen) == 0


@pytest.mark.parametrize("moved", ["elsewhere/web/train", "web/corpus", "train"])
def test_a_moved_or_renamed_source_goes_on_where_it_was(tmp_path: Path, moved: str) -> None:
    old, code = write(tmp_path / "web/train", 150, 95), write(tmp_path / "code/train", 99, seed=1)
    first = Blend.begin(known(old, code), whole_run(2.0, 1.0))
    expected = read(first, range(300), [old, code])
    new = tmp_path / moved
    new.parent.mkdir(parents=True, exist_ok=True)
    for number in range(2):
        for suffix in (".bin", ".idx"):
            shutil.move(
                f"{shard_prefix(old, number)}{suffix}", f"{shard_prefix(new, number)}{suffix}"
            )
    # Listed the other way round too.
    again = Blend.resume(record_of(first), 100, known(code, new), whole_run(1.0, 2.0))
    assert not again.is_new
    assert again.phases == first.phases
    assert again.notes == (
        f"{code}: as before",
        f"{new}: the contents of {old}, goes on as that",
    )
    assert read(again, range(300), [code, new]) == expected
    # The new place is what the next start compares with.
    later = Blend.resume(record_of(again), 200, known(code, new), whole_run(1.0, 2.0))
    assert later.notes == ("all sources are as before",)


def test_other_data_at_an_old_path_begins_a_new_phase_with_all_its_windows(tmp_path: Path) -> None:
    path = write(tmp_path / "train", 245)
    first = Blend.begin(known(path), whole_run(1.0))
    write(path, 245, seed=9)
    other = Blend.resume(record_of(first), 120, known(path), whole_run(1.0))
    assert other.is_new
    assert other.keys != first.keys
    assert other.notes[0] == f"{path}: other contents than before, new to this run"
    assert f"{path}: no longer read" in other.notes
    windows = read(other, range(120, 120 + 245), [path])
    assert len(set(windows)) == 245, "none is left out"


def test_another_corpus_whose_path_ends_alike_begins_a_new_phase(tmp_path: Path) -> None:
    old, new = write(tmp_path / "a/train", 245), write(tmp_path / "b/train", 245, seed=1)
    first = Blend.begin(known(old), whole_run(1.0))
    swapped = Blend.resume(record_of(first), 120, known(new), whole_run(1.0))
    assert swapped.is_new
    assert len(set(read(swapped, range(120, 365), [new]))) == 245
    # And back: what was read of the first counts.
    back = Blend.resume(record_of(swapped), 200, known(old), whole_run(1.0))
    assert back.keys == first.keys
    windows = read(first, range(120), [old]) + read(back, range(200, 325), [old])
    assert num_repeated(windows) == 0


@pytest.mark.parametrize("shards", [(100, 116, 20), (100,)])
def test_a_series_with_more_or_fewer_shards_is_refused(
    tmp_path: Path, shards: tuple[int, ...]
) -> None:
    path = write(tmp_path / "train", 100, 116)
    first = Blend.begin(known(path), whole_run(1.0))
    for file in tmp_path.iterdir():
        file.unlink()
    write(path, *shards)
    with pytest.raises(UserError, match=r"of which \d are among the 2 that this run knows as"):
        Blend.resume(record_of(first), 116, known(path), whole_run(1.0))
    # What the message advises.
    write(path, 100, 116)
    shutil.rmtree(tmp_path / "kept", ignore_errors=True)
    kept = write(tmp_path / "kept/train", 100, 116)
    added = write(tmp_path / "kept/added", 20, seed=3)
    both = Blend.resume(record_of(first), 116, known(kept, added), whole_run(1.0, 1.0))
    assert both.keys[0] == first.keys[0]


def test_what_a_source_is_called_changes_nothing_in_its_order(tmp_path: Path) -> None:
    a, b = write(tmp_path / "a/train", 90, 30), write(tmp_path / "b/other", 90, 30)
    [one], [other] = known(a), known(b)
    assert one.key == other.key
    orders = [read(Blend.begin([each], whole_run(1.0)), range(120), [a]) for each in (one, other)]
    assert orders[0] == orders[1]


def test_equal_lengths_do_not_make_equal_data(tmp_path: Path) -> None:
    one, other = write(tmp_path / "a", 9), write(tmp_path / "b", 9, seed=1)
    files = [find_shards(prefix)[0] for prefix in (one, other)]
    indices = [file.with_name(f"{file.name}.idx").read_bytes() for file in files]
    assert indices[0] == indices[1]
    assert shard_digest(files[0]) != shard_digest(files[1])


def test_the_same_contents_twice_are_two_sources(tmp_path: Path) -> None:
    a, b = write(tmp_path / "a", 20), write(tmp_path / "b", 20)
    first = Blend.begin(known(a, b), whole_run(1.0, 3.0))
    assert len(set(first.keys)) == 2
    again = Blend.resume(record_of(first), 10, known(b, a), whole_run(3.0, 1.0))
    assert not again.is_new
    assert again.keys == first.keys[::-1]


def test_a_running_job_of_an_earlier_version_keeps_its_order(tmp_path: Path) -> None:
    web, code = write(tmp_path / "web/train", 245), write(tmp_path / "code/train", 245, seed=1)
    phases = [Phase(0, (("train", 1.0),))]
    old = Sampler(0, phases, {"train": 245})
    source = Source.open(web, SEQ_LEN, VOCAB_SIZE)
    expected = [
        tuple(source.window(old.locate(sample).window).tokens.tolist()) for sample in range(300)
    ]
    record = earlier_record(phases, [web])
    same = Blend.resume(record, 120, known(web), whole_run(1.0))
    assert not same.is_new
    assert same.keys == ("train",)
    assert read(same, range(300), [web]) == expected
    # A second source changes the names, not what the first one goes by.
    both = Blend.resume(record, 120, known(web, code), whole_run(1.0, 1.0))
    assert both.keys[0] == "train"
    assert num_repeated(expected[:120] + read(both, range(120, 320), [web, code])) == 0
    # What this version records holds on later, wherever the data goes.
    moved = Path(shutil.move(tmp_path / "web", tmp_path / "moved")) / "train"
    later = Blend.resume(record_of(same), 120, known(moved), whole_run(1.0))
    assert later.keys == ("train",) and not later.is_new


def test_a_moved_source_of_an_earlier_version_is_taken_by_its_name(tmp_path: Path) -> None:
    web, code = (
        write(tmp_path / "new/web/train", 50),
        write(tmp_path / "new/code/train", 60, seed=1),
    )
    was = [Path("/old/web/train"), Path("/old/code/train")]
    names = source_names([str(path) for path in was])
    record = earlier_record([Phase(0, ((names[0], 1.0), (names[1], 1.0)))], was)
    blend = Blend.resume(record, 50, known(web, code), whole_run(1.0, 1.0))
    assert blend.keys == ("web/train", "code/train") and not blend.is_new
    assert "by its name, which is all that an earlier version recorded" in blend.notes[0]


def test_an_unused_phase_gives_way(tmp_path: Path) -> None:
    a, b, c = (write(tmp_path / name, 50, seed=number) for number, name in enumerate("abc"))
    first = Blend.begin(known(a), whole_run(1.0))
    second = Blend.resume(record_of(first), 20, known(b), whole_run(1.0))
    third = Blend.resume(record_of(second), 20, known(c), whole_run(1.0))
    assert [phase.start_sample for phase in third.phases] == [0, 20]
    assert set(third.sources) == {first.keys[0], third.keys[0]}
    assert Counter(len(phase.weights) for phase in third.phases) == {1: 2}
