"""Cleaning beside datatrove on the same texts and cores, and duplicates beside exact similarities.

    python benchmarks/cleaning.py                  # all, some minutes
    python benchmarks/cleaning.py --megabytes 8    # less text for the races

Needs `pip install "triax[clean]" "datatrove[processing]" spacy`; without spaCy datatrove's filters
and signatures split words by triax's own rule, which is faster, and the page says so.
The texts are Python's standard library and the system's documentation, with copies planted in them.
"""

from __future__ import annotations

import argparse
import importlib.util
import os
import random
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

os.environ.setdefault("RAYON_NUM_THREADS", "1")

import numpy as np
import xxhash

from triax.data.clean.config import FineWebConfig, GopherConfig, NearConfig, RepetitionConfig
from triax.data.clean.document import Document
from triax.data.clean.duplicates import KeyedPiece, NearDuplicates, numbered
from triax.data.clean.gopher import Gopher, GopherRepetition
from triax.data.clean.shingles import shingle_hashes
from triax.data.clean.web import FineWeb
from triax.data.clean.words import split_words
from triax.data.prepare.text import iter_documents

_PIECE = 256
_VOCABULARY = 30_000


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--megabytes", type=float, default=20.0)
    parser.add_argument("--documents", type=int, default=20_000, help="for recall and precision")
    args = parser.parse_args()
    texts = list(_texts(int(args.megabytes * 1e6)))
    size = sum(map(len, texts)) / 1e6
    print(f"{len(texts):,} documents, {size:.1f} million characters, one process")
    if importlib.util.find_spec("datatrove") is None:
        sys.exit("datatrove isn't installed: pip install datatrove")
    words = _use_words()
    print(f"datatrove splits words by {words}")
    _race("MinHash deduplication", size, texts, _deduplicate, _deduplicate_datatrove)
    _race("filters", size, texts, _filter, _filter_datatrove)
    _quality(args.documents)


def _texts(num_characters: int) -> Iterator[str]:
    """Real texts until that many characters, each twentieth planted again with some change."""
    chance, total = random.Random(1), 0
    folders = [path for path in ("/usr/share/doc", "/usr/share/perl") if Path(path).is_dir()]
    for number, text in enumerate(iter_documents(["python-stdlib", *folders])):
        yield text
        total += len(text)
        if number % 20 == 0:
            yield _changed(text, chance, 0.01)
        if total >= num_characters:
            return


def _changed(text: str, chance: random.Random, share: float) -> str:
    words = text.split(" ")
    for _ in range(int(share * len(words))):
        words[chance.randrange(len(words))] = _word(chance.randrange(1000))
    return " ".join(words)


def _word(number: int) -> str:
    """A word of letters alone: all numbers are one word."""
    return "".join(chr(ord("a") + int(digit)) for digit in f"{number:05d}")


def _race(
    name: str,
    size: float,
    texts: list[str],
    ours: Callable[[list[str]], int],
    theirs: Callable[[list[str]], int],
) -> None:
    seconds, counts = [], []
    for function in (ours, theirs):
        function(texts[:2])  # imports and tables
        began = time.perf_counter()
        counts.append(function(texts))
        seconds.append(time.perf_counter() - began)
    print(
        f"{name}: triax {seconds[0]:.2f} s ({size / seconds[0]:.1f} MB/s), drops {counts[0]:,}; "
        f"datatrove {seconds[1]:.2f} s ({size / seconds[1]:.1f} MB/s), drops {counts[1]:,}; "
        f"ratio {seconds[1] / seconds[0]:.1f}"
    )


def _dropped(texts: list[str], config: NearConfig, folder: Path) -> set[int]:
    """Numbers of the texts that are dropped as near duplicates."""
    step = NearDuplicates(config)
    pieces = []
    for number, begin in enumerate(range(0, len(texts), _PIECE)):
        part = [Document(text, "", "", "") for text in texts[begin : begin + _PIECE]]
        keys = step.keys(part)
        path = folder / f"{number}.keys"
        path.write_bytes(numbered(keys.keys, number).tobytes())
        signatures = folder / f"{number}.npy"
        if keys.signatures.size:
            np.save(signatures, keys.signatures)
        pieces.append(KeyedPiece(path, signatures, len(part)))
    decided = step.decide(pieces, folder / "sort", 1 << 30)
    return {number * _PIECE + int(item) for number, items in decided for item in items}


def _deduplicate(texts: list[str]) -> int:
    with tempfile.TemporaryDirectory() as folder:
        return len(_dropped(texts, NearConfig(step="near_duplicates"), Path(folder)))


def _filter(texts: list[str]) -> int:
    steps = (
        GopherRepetition(RepetitionConfig(step="gopher_repetition")),
        Gopher(GopherConfig(step="gopher")),
        FineWeb(FineWebConfig(step="fineweb")),
    )
    documents = (Document(text, "", "", "") for text in texts)
    return sum(any(step(document) for step in steps) for document in documents)


def _use_words() -> str:
    """What datatrove splits words by; its own rules need spaCy."""
    if importlib.util.find_spec("spacy") is not None:
        return "spaCy, its default"
    from datatrove.pipeline.dedup import minhash
    from datatrove.pipeline.filters import (
        fineweb_quality_filter,
        gopher_quality_filter,
        gopher_repetition_filter,
    )

    class Words:
        def word_tokenize(self, text: str) -> list[str]:
            return split_words(text)

    minhash.load_word_tokenizer = lambda _language: Words()
    for module in (fineweb_quality_filter, gopher_quality_filter, gopher_repetition_filter):
        module.split_into_words = lambda text, _language: split_words(text)
    return "triax's rule, since spaCy isn't installed: its times are shorter than its own"


def _datatrove_documents(texts: list[str]) -> list[Any]:
    from datatrove.data import Document as TheirDocument

    return [TheirDocument(text=text, id=str(number)) for number, text in enumerate(texts)]


def _deduplicate_datatrove(texts: list[str]) -> int:
    from datatrove.pipeline.dedup import minhash

    with tempfile.TemporaryDirectory() as folder:
        config = minhash.MinhashConfig()
        signatures = minhash.MinhashDedupSignature(f"{folder}/s", config)
        # Newer versions of xxhash take no text.
        signatures._hash_func = lambda text: xxhash.xxh64_intdigest(text.encode())
        signatures.run(iter(_datatrove_documents(texts)))
        buckets = minhash.MinhashDedupBuckets(f"{folder}/s", f"{folder}/b", config=config)
        for rank in range(config.num_buckets):
            buckets.run(None, rank, config.num_buckets)
        minhash.MinhashDedupCluster(f"{folder}/b", f"{folder}/r", config=config).run(None, 0, 1)
        kept = minhash.MinhashDedupFilter(f"{folder}/r").run(iter(_datatrove_documents(texts)))
        return len(texts) - sum(1 for _ in kept)


def _filter_datatrove(texts: list[str]) -> int:
    from datatrove.pipeline.filters import (
        FineWebQualityFilter,
        GopherQualityFilter,
        GopherRepetitionFilter,
    )

    steps = (GopherRepetitionFilter(), GopherQualityFilter(), FineWebQualityFilter())
    documents = _datatrove_documents(texts)
    return sum(any(step.filter(document) is not True for step in steps) for document in documents)


def _quality(num_documents: int) -> None:
    """Pairs that share a band, beside their exact similarities, on synthetic documents."""
    texts = list(_families(num_documents))
    hashes, offsets = shingle_hashes(texts, 5)
    sets = [frozenset(hashes[a:b].tolist()) for a, b in pairwise(offsets)]
    similarities = _similar_pairs(sets)
    print(f"{num_documents:,} documents, {len(similarities):,} pairs of similarity above 0")
    for threshold in (0.0, 0.7, 0.8):
        config = NearConfig(step="near_duplicates", threshold=threshold)
        with tempfile.TemporaryDirectory() as folder:
            dropped = _dropped(texts, config, Path(folder))
        for least in (0.7, 0.8, 0.9):
            wanted = _wanted(len(texts), similarities, least)
            right = len(dropped & wanted)
            print(
                f"threshold {threshold}, duplicates from {least}: "
                f"recall {right / max(len(wanted), 1):.4f}, "
                f"precision {right / max(len(dropped), 1):.4f}"
            )


def _families(num_documents: int) -> Iterator[str]:
    """Documents of chance words, each third one with up to three changed copies."""
    chance, count = random.Random(2), 0
    while count < num_documents:
        words = [_word(chance.randrange(_VOCABULARY)) for _ in range(chance.randrange(80, 300))]
        text = " ".join(words)
        copies = chance.randrange(1, 4) if chance.random() < 0.33 else 0
        for share in [
            0.0,
            *(chance.choice((0.005, 0.01, 0.02, 0.04, 0.08)) for _ in range(copies)),
        ]:
            if count < num_documents:
                yield _changed(text, chance, share)
                count += 1


def _similar_pairs(sets: list[frozenset[int]]) -> dict[tuple[int, int], float]:
    """The Jaccard similarity of all pairs that share an n-gram."""
    holders: dict[int, list[int]] = {}
    pairs: set[tuple[int, int]] = set()
    for number, members in enumerate(sets):
        for member in members:
            others = holders.setdefault(member, [])
            pairs.update((other, number) for other in others)
            others.append(number)
    return {(a, b): len(sets[a] & sets[b]) / len(sets[a] | sets[b]) for a, b in pairs}


def _wanted(num: int, similarities: dict[tuple[int, int], float], least: float) -> set[int]:
    """What exact similarities drop: all but the first of each connected component."""
    first = list(range(num))

    def root(number: int) -> int:
        while first[number] != number:
            first[number] = first[first[number]]
            number = first[number]
        return number

    for (one, other), similarity in similarities.items():
        if similarity >= least:
            low, high = sorted((root(one), root(other)))
            first[high] = low
    return {number for number in range(num) if root(number) != number}


if __name__ == "__main__":
    main()
