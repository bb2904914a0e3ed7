"""Text to token ids: `triax data prepare` beside `datasets.map` and Megatron-LM's way.

    python benchmarks/tokenizing.py --rounds 3 corpus.jsonl

All three get the same documents, tokenizer and number of processes, and take turns. Megatron-LM's
way is that of its `tools/preprocess_data.py` with megatron-core's own writer: a pool of processes
that encode document by document. Prints the median seconds of each, and the others' over triax's.
The ids of all three must be the same, or the comparison is void. Heavy packages are imported where
they are used, once before the clock runs: triax's own processes import this file, too.
"""

from __future__ import annotations

import argparse
import importlib
import json
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from functools import cache
from multiprocessing import get_context
from pathlib import Path

import numpy as np
import numpy.typing as npt
from tokenizers import Tokenizer

from triax.data.prepare.corpus import prepare
from triax.data.prepare.tokenizer import END_OF_TEXT, train_tokenizer

_CHUNK = 32
"""Documents that a process of the pool takes at a time, as Megatron-LM's script has it."""


def by_triax(corpus: Path, tokenizer: Path, output: Path, num_processes: int) -> None:
    prepare([str(corpus)], tokenizer, output, num_workers=num_processes, validation_fraction=0)


def by_datasets(corpus: Path, tokenizer: Path, output: Path, num_processes: int) -> None:
    import datasets  # type: ignore[import-untyped]

    datasets.disable_progress_bars()
    loaded = datasets.Dataset.from_json(str(corpus), cache_dir=str(output))
    loaded.map(
        lambda rows: {"ids": _encode_rows(str(tokenizer), rows["text"])},
        batched=True,
        num_proc=num_processes,
        remove_columns=["text"],
        load_from_cache_file=False,
    ).save_to_disk(str(output / "mapped"))


def by_megatron(corpus: Path, tokenizer: Path, output: Path, num_processes: int) -> None:
    import torch
    from megatron.core.datasets.indexed_dataset import IndexedDatasetBuilder

    output.mkdir()
    builder = IndexedDatasetBuilder(str(output / "train.bin"), dtype=np.uint16)
    lines = corpus.open(encoding="utf-8")
    with lines, get_context("fork").Pool(num_processes, _load, (str(tokenizer),)) as pool:
        for ids in pool.imap(_encode_line, lines, _CHUNK):
            builder.add_document(torch.tensor(ids, dtype=torch.int32), [len(ids)])
    builder.finalize(str(output / "train.idx"))


@cache
def _load(tokenizer: str) -> Tokenizer:
    loaded = Tokenizer.from_file(f"{tokenizer}/tokenizer.json")
    loaded.encode_special_tokens = True
    _current.append(loaded)
    return loaded


_current: list[Tokenizer] = []
"""A pool's process has one, from its initializer."""


def _encode_line(line: str) -> list[int]:
    ids: list[int] = _current[0].encode(json.loads(line)["text"]).ids
    return [*ids, _end(_current[0])]


def _encode_rows(tokenizer: str, texts: list[str]) -> list[list[int]]:
    loaded = _load(tokenizer)
    return [[*encoding.ids, _end(loaded)] for encoding in loaded.encode_batch(texts)]


def _end(tokenizer: Tokenizer) -> int:
    number = tokenizer.token_to_id(END_OF_TEXT)
    assert number is not None
    return number


def _copy_documents(corpus: Path, copy: Path) -> None:
    """Without empty ones, which triax leaves out and the others end."""
    with corpus.open(encoding="utf-8") as lines, copy.open("w", encoding="utf-8") as kept:
        kept.writelines(line for line in lines if json.loads(line)["text"])


def all_ids(folder: Path) -> npt.NDArray[np.uint32]:
    """What one of the three has written, as one row."""
    import datasets
    from megatron.core.datasets.indexed_dataset import IndexedDataset

    if (folder / "mapped").is_dir():
        rows = datasets.load_from_disk(str(folder / "mapped"))["ids"]
        return np.concatenate([np.array(row, np.uint32) for row in rows])
    prefix = next(folder.glob("train*.bin")).with_suffix("")
    indexed = IndexedDataset(str(prefix))
    return np.concatenate([indexed[number].astype(np.uint32) for number in range(len(indexed))])


WAYS: dict[str, Callable[[Path, Path, Path, int], None]] = {
    "triax": by_triax,
    "datasets.map": by_datasets,
    "Megatron-LM": by_megatron,
}


def _import_heavy_packages() -> None:
    for name in ("datasets", "megatron.core.datasets.indexed_dataset"):
        importlib.import_module(name)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("corpus", type=Path, help="a .jsonl file with a field `text`")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--vocab-size", type=int, default=8192)
    parser.add_argument("--processes", type=int, default=len(os.sched_getaffinity(0)))
    arguments = parser.parse_args()
    # Without this, a process's encode_batch would take all cores on top of the processes.
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    _import_heavy_packages()
    seconds: dict[str, list[float]] = {name: [] for name in WAYS}
    with tempfile.TemporaryDirectory() as folder:
        corpus, tokenizer = Path(folder) / "corpus.jsonl", Path(folder) / "tokenizer"
        _copy_documents(arguments.corpus, corpus)
        train_tokenizer([str(corpus)], arguments.vocab_size, tokenizer)
        for round_ in range(arguments.rounds):
            for name, way in WAYS.items():
                output = Path(folder) / f"{name}-{round_}"
                begin = time.perf_counter()
                way(corpus, tokenizer, output, arguments.processes)
                seconds[name].append(time.perf_counter() - begin)
        rows = {name: all_ids(Path(folder) / f"{name}-0") for name in WAYS}
    if not all(np.array_equal(ids, rows["triax"]) for ids in rows.values()):
        sys.exit("the ids differ: the comparison is void")
    print(f"{len(rows['triax']):,} tokens, ids equal, {arguments.processes} processes")
    own = statistics.median(seconds["triax"])
    for name, values in seconds.items():
        middle = statistics.median(values)
        print(f"{name:14} {middle:8.2f} s   {middle / own:5.2f} x")


if __name__ == "__main__":
    main()
