"""A recipe from INPUTs to documents and a report: known answers, any workers, any end."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("rensa")

from triax.common.errors import UserError
from triax.common.files import replace_bytes
from triax.data.clean import store
from triax.data.clean.clean import clean
from triax.data.clean.config import (
    BlockListConfig,
    ContaminationConfig,
    ExactConfig,
    FunctionConfig,
    NearConfig,
    OutputConfig,
    PiiConfig,
    Recipe,
    StepConfig,
)
from triax.data.clean.passes import recipe_json
from triax.data.prepare.text import iter_records

EXACT = ExactConfig(step="exact_duplicates")
NEAR = NearConfig(step="near_duplicates")


KILLED = """
import os, signal, sys
from pathlib import Path
from triax.data.clean import store
from triax.data.clean.clean import clean
from triax.data.clean.passes import parse_recipe
whole, left = store.replace_bytes, int(sys.argv[4])
def replace(path, content, *, fsync=False):
    global left
    left -= 1
    if left == 0:
        path.with_name(path.name + ".partial").write_bytes(content[:50])
        os.kill(os.getpid(), signal.SIGKILL)
    whole(path, content, fsync=fsync)
store.replace_bytes = replace
clean([sys.argv[1]], parse_recipe(sys.argv[3]), Path(sys.argv[2]), num_workers=1)
"""


def recipe(*steps: StepConfig, piece_characters: int = 12_000, kind: str = "jsonl.zst") -> Recipe:
    output = OutputConfig.model_validate(
        {"format": kind, "piece_characters": piece_characters, "memory_mib": 1}
    )
    return Recipe.model_construct(output=output, steps=steps)


def chance_text(seed: int, num_words: int = 120) -> str:
    chance = random.Random(seed)
    return " ".join(word(chance.randrange(5000)) for _ in range(num_words))


def word(number: int) -> str:
    """A word of letters alone: all numbers are one word."""
    return "".join(chr(ord("a") + int(digit)) for digit in f"{number:05d}")


def write_rows(path: Path, rows: list[dict[str, object]]) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return str(path)


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> str:
    """120 texts; every tenth again, word for word, and every tenth again with one word changed."""
    rows: list[dict[str, object]] = []
    for number in range(120):
        text = chance_text(number)
        rows.append({"id": f"new {number}", "text": text, "url": f"https://a.example/{number}"})
        if number % 10 == 3:
            rows.append({"id": f"same {number}", "text": text})
        if number % 10 == 6:
            rows.append({"id": f"near {number}", "text": text.replace(" ", " changed ", 1)})
    # Copies come in other pieces than what they are copies of, too.
    first = [row for row in rows if str(row["id"]).startswith("new")]
    rest = [row for row in rows if row not in first]
    return write_rows(tmp_path_factory.mktemp("corpus") / "rows.jsonl", first + rest)


def kept_ids(folder: Path) -> list[str]:
    records = iter_records([str(folder / "documents")], with_fields=True)
    return [record.fields["id"] for record in records]


def files(folder: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.name not in (".lock",)
    }


def test_planted_duplicates_are_dropped_and_the_first_of_each_stays(
    corpus: str, tmp_path: Path
) -> None:
    counts = clean([corpus], recipe(EXACT, NEAR), tmp_path / "out", num_workers=1)
    assert kept_ids(tmp_path / "out") == [f"new {number}" for number in range(120)]
    assert counts.steps["exact_duplicates"].reasons == {"duplicate": 12}
    assert counts.steps["near_duplicates"].reasons == {"near_duplicate": 12}
    assert (counts.read.documents, counts.written.documents) == (144, 120)
    assert not (tmp_path / "out/work").exists()
    report = json.loads((tmp_path / "out/report.json").read_text())
    assert report["steps"]["exact_duplicates"]["documents_in"] == 144


def test_the_bytes_depend_neither_on_workers_nor_on_kills(corpus: str, tmp_path: Path) -> None:
    steps = (EXACT, PiiConfig(step="pii"), NEAR)
    for workers in (1, 2, 3):
        clean([corpus], recipe(*steps), tmp_path / f"{workers}", num_workers=workers)
    expected = files(tmp_path / "1")
    assert files(tmp_path / "2") == expected
    assert files(tmp_path / "3") == expected
    for number in (4, 21):
        command = [sys.executable, "-c", KILLED, corpus, str(tmp_path / "k")]
        killed = subprocess.run([*command, recipe_json(recipe(*steps)), str(number)], check=False)
        assert killed.returncode == -signal.SIGKILL
    clean([corpus], recipe(*steps), tmp_path / "k", num_workers=1)
    assert files(tmp_path / "k") == expected


def test_a_finished_cleaning_returns_and_another_is_refused(corpus: str, tmp_path: Path) -> None:
    once = clean([corpus], recipe(EXACT), tmp_path, num_workers=1)
    assert clean([corpus], recipe(EXACT), tmp_path, num_workers=1) == once
    with pytest.raises(UserError, match="was begun with other settings"):
        clean([corpus], recipe(NEAR), tmp_path, num_workers=1)


def test_an_interrupted_write_loses_nothing(
    corpus: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A disk that is full for a while: an error, and the next call goes on."""
    clean([corpus], recipe(EXACT, NEAR), tmp_path / "whole", num_workers=1)
    whole, count = replace_bytes, 0

    def fail_at(number: int) -> None:
        def replace(path: Path, content: bytes, *, fsync: bool = False) -> None:
            nonlocal count
            count += 1
            if count == number:
                raise OSError(28, "No space left on device")
            whole(path, content, fsync=fsync)

        monkeypatch.setattr(store, "replace_bytes", replace)

    for number in (2, 6, 17, 30):
        count = 0
        fail_at(number)
        with pytest.raises(UserError, match="No space left"):
            clean([corpus], recipe(EXACT, NEAR), tmp_path / "full", num_workers=1)
    monkeypatch.setattr(store, "replace_bytes", whole)
    clean([corpus], recipe(EXACT, NEAR), tmp_path / "full", num_workers=1)
    assert files(tmp_path / "full") == files(tmp_path / "whole")


def test_an_existing_corpus_counts_as_earlier(corpus: str, tmp_path: Path) -> None:
    rows: list[dict[str, object]] = [
        {"id": "same", "text": chance_text(3)},
        {"id": "near", "text": "begin " + chance_text(7)},
        {"id": "new", "text": chance_text(1000)},
    ]
    given = write_rows(tmp_path / "new.jsonl", rows)
    for name, step in (
        ("exact", ExactConfig(step="exact_duplicates", against=(corpus,))),
        ("near", NearConfig(step="near_duplicates", against=(corpus,), threshold=0.6)),
    ):
        clean([given], recipe(step), tmp_path / name, num_workers=1)
    assert kept_ids(tmp_path / "exact") == ["near", "new"]
    assert kept_ids(tmp_path / "near") == ["new"]


def test_lines_that_stood_before_are_cut_out(tmp_path: Path) -> None:
    menu = "Home | About us | Contact the webmaster"
    rows: list[dict[str, object]] = [
        {"text": f"{menu}\nfirst\n}}"},
        {"text": f"second\n{menu}\nthird\n}}"},
        {"text": menu},
        {"text": f"fourth\n{menu}"},
    ]
    given = write_rows(tmp_path / "rows.jsonl", rows)
    step = ExactConfig(step="exact_duplicates", unit="line")
    for size in (1000, 100_000):
        output = tmp_path / f"{size}"
        clean([given], recipe(step, piece_characters=size, kind="parquet"), output, num_workers=1)
        texts = [record.text for record in iter_records([str(output / "documents")])]
        assert texts == [f"{menu}\nfirst\n}}", "second\nthird\n}", "fourth"]


def test_steps_over_one_document(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    evaluation = chance_text(77, 40)
    rows: list[dict[str, object]] = [
        {"id": "leak", "text": "x " * 5 + evaluation.upper() + " end", "lang": 1},
        {"id": "bad", "text": "a Forbidden\nphrase here"},
        {"id": "host", "text": "fine", "url": "https://www.spam.example/x"},
        {"id": "pii", "text": "write to ann@mail.example.org or 8.8.8.8 or 10.0.0.1, 1.2.3.4.5"},
        {"id": "own", "text": "drop me"},
    ]
    given = write_rows(tmp_path / "rows.jsonl", rows)
    (tmp_path / "sets.txt").write_text(evaluation)
    (tmp_path / "words.txt").write_text("# bad\nforbidden\n")
    (tmp_path / "hosts.txt").write_text("spam.example\n")
    (tmp_path / "users_step.py").write_text(
        "def check(document):\n    return 'told to' if 'drop me' in document.text else None\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    steps = recipe(
        ContaminationConfig(step="contamination", sets=(str(tmp_path / "sets.txt"),)),
        BlockListConfig(
            step="block_list",
            words=str(tmp_path / "words.txt"),
            hosts=str(tmp_path / "hosts.txt"),
        ),
        PiiConfig(step="pii"),
        FunctionConfig(step="function", function="users_step:check"),
        kind="jsonl.gz",
    )
    counts = clean([given], steps, tmp_path / "out", num_workers=1)
    (left,) = iter_records([str(tmp_path / "out/documents")])
    assert left.text == "write to email@example.com or 192.0.2.1 or 10.0.0.1, 1.2.3.4.5"
    assert counts.steps["contamination"].reasons == {"contamination": 1}
    assert counts.steps["block_list"].reasons == {"words": 1, "host": 1}
    assert counts.steps["function"].reasons == {"told to": 1}
    (tmp_path / "users_step.py").write_text("def check(document):\n    return 'all'\n")
    with pytest.raises(UserError, match=r"other settings \(functions\)"):
        clean([given], steps, tmp_path / "out", num_workers=1)


def test_hostile_text_stays_text_in_the_report(tmp_path: Path) -> None:
    evil = "<script>alert(1)</script><img src=x onerror=alert(2)>\x1b[31m\u202e"
    rows: list[dict[str, object]] = [
        {"id": evil, "source": evil, "text": f"{evil} twice"} for _ in range(2)
    ]
    given = write_rows(tmp_path / "rows.jsonl", rows)
    clean([given], recipe(EXACT), tmp_path / "out", num_workers=1)
    page = (tmp_path / "out/report.html").read_text(encoding="utf-8")
    assert "<script" not in page and "<img" not in page and "\x1b" not in page
    assert "&lt;script&gt;" in page
    assert "http" not in page.replace("http-equiv", "")


def test_memory_is_bounded_by_pieces_and_not_by_the_corpus(tmp_path: Path) -> None:
    """More text than memory may be had beyond what the program itself takes."""
    code = """
import random, resource, sys
from pathlib import Path
from triax.data.clean.clean import clean
from triax.data.clean.passes import parse_recipe
import pandas, rensa, pyarrow.parquet
pyarrow.set_cpu_count(1)
pyarrow.set_io_thread_count(1)
used = int(next(l for l in open("/proc/self/status") if l.startswith("VmData")).split()[1]) << 10
limit = used + (56 << 20)
resource.setrlimit(resource.RLIMIT_DATA, (limit, limit))
clean([sys.argv[1]], parse_recipe(sys.argv[3]), Path(sys.argv[2]), num_workers=1)
"""
    chance = random.Random(5)
    words = [word(number) for number in range(20_000)]
    path = tmp_path / "large.jsonl"
    with path.open("w") as file:
        for _ in range(2100):
            texts = " ".join(chance.choices(words, k=5000))
            file.write(json.dumps({"text": texts}) + "\n")
    assert path.stat().st_size > 60 << 20
    given = recipe_json(recipe(NEAR, piece_characters=500_000))
    result = subprocess.run(
        [sys.executable, "-c", code, str(path), str(tmp_path / "out"), given],
        env={**os.environ, "ARROW_DEFAULT_MEMORY_POOL": "system", "RAYON_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 0, result.stderr[-2000:]
    record = json.loads((tmp_path / "out/report.json").read_text())
    assert record["written"]["documents"] == 2100
