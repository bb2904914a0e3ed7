"""Saved datasets, WebDataset archives, web pages and crawls as inputs."""

from __future__ import annotations

import gzip
import io
import json
import shutil
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest

from triax.common.errors import UserError
from triax.data.prepare.inputs import inputs_fingerprint
from triax.data.prepare.text import Record, iter_documents, iter_records

TEXTS = ["first\nline two", "zweite, schön", "第三 🙂"]
PAGE = """<html><head><title>A page</title><script>track()</script></head><body>
<nav><a href="/">Home</a> <a href="/all">All articles</a></nav><article><h1>On packing</h1>
<p>{text} Whole documents stay whole where a sample can hold them, which most of them are.</p>
<p>Only what is longer is cut, and what is left of it is packed like any other document.</p>
</article><footer>Copyright and cookies</footer></body></html>"""


def read(path: Path) -> list[str]:
    return list(iter_documents([str(path)]))


def records(path: Path) -> list[Record]:
    return list(iter_records([str(path)], with_fields=True))


def test_a_saved_dataset_is_read_as_it_was_saved(tmp_path: Path) -> None:
    datasets = pytest.importorskip("datasets")
    many = [f"{text} {number}" for number in range(5) for text in TEXTS]
    data = datasets.Dataset.from_dict({"text": many, "id": list(range(15))})
    # Rows that were chosen and ordered come so.
    data.sort("id", reverse=True).select(range(12)).save_to_disk(tmp_path / "one", num_shards=3)
    data = datasets.load_from_disk(tmp_path / "one")
    assert read(tmp_path / "one") == data["text"] == many[:2:-1]
    assert records(tmp_path / "one")[0].fields == {"id": 14}
    splits = {"train": data, "test": data.select([0])}
    datasets.DatasetDict(splits).save_to_disk(tmp_path / "several")
    assert read(tmp_path / "several") == data["text"]
    assert read(tmp_path / "several/test") == [many[14]]
    assert len(read(tmp_path)) == 24, "also below a folder"
    assert inputs_fingerprint([str(tmp_path / "one")])
    (tmp_path / "several/dataset_dict.json").write_text('{"splits": ["dev", "test"]}')
    with pytest.raises(UserError, match=r"the splits dev, test and none called train"):
        read(tmp_path / "several")
    arrow = sorted((tmp_path / "one").glob("*.arrow"))
    arrow[1].write_bytes(arrow[1].read_bytes()[:200])
    with pytest.raises(UserError, match=r"damaged or no Arrow file"):
        read(tmp_path / "one")
    arrow[2].unlink()
    with pytest.raises(UserError, match=r"missing, though state\.json names it"):
        read(tmp_path / "one")
    (tmp_path / "one/state.json").write_text('{"_data_files": [{"filename": "../x.arrow"}]}')
    with pytest.raises(UserError, match=r"state\.json: damaged"):
        read(tmp_path / "one")


def test_both_arrow_formats_are_read(tmp_path: Path) -> None:
    import pyarrow
    from pyarrow import ipc

    table = pyarrow.table({"text": TEXTS, "id": [1, 2, 3]})
    for name, new in (("stream", ipc.new_stream), ("file", ipc.new_file)):
        with new(tmp_path / f"{name}.arrow", table.schema) as writer:
            writer.write_table(table)
        assert read(tmp_path / f"{name}.arrow") == TEXTS


def tar(path: Path, members: dict[str, bytes]) -> Path:
    with tarfile.open(path, "w") as archive:
        for name, content in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
        link = tarfile.TarInfo("z.txt")
        link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
        archive.addfile(link)
    return path


def test_a_webdataset_s_samples_are_documents(tmp_path: Path) -> None:
    path = tar(
        tmp_path / "shard.tar",
        {
            "a/0.jpg": b"\xff\xd8",
            "a/0.txt": TEXTS[0].encode(),
            "a/0.json": json.dumps({"lang": "en", "text": "not this"}).encode(),
            "a/1.json": json.dumps({"text": TEXTS[1], "url": "http://x"}).encode(),
            "a/2.jpg": b"\xff",
            "b/2.txt": TEXTS[2].encode(),
        },
    )
    found = records(path)
    assert [record.text for record in found] == TEXTS
    assert [record.number for record in found] == [1, 2, 4]
    assert [record.fields for record in found] == [
        {"key": "a/0", "lang": "en"}, {"key": "a/1", "url": "http://x"}, {"key": "b/2"},
    ]  # fmt: skip
    packed = tmp_path / "shard2.tar.gz"
    packed.write_bytes(gzip.compress(path.read_bytes()))
    assert read(packed) == TEXTS
    path.write_bytes(path.read_bytes()[:1800])
    with pytest.raises(UserError, match=r"shard\.tar: damaged"):
        read(path)
    with pytest.raises(UserError, match=r"bad.tar, 0\.txt: not UTF-8"):
        read(tar(tmp_path / "bad.tar", {"0.txt": b"\xff\xfe"}))
    with pytest.raises(UserError, match=r'none of its 1 samples has a \.txt, .*"text"'):
        read(tar(tmp_path / "none.tar", {"0.jpg": b"", "0.json": b"{}"}))


def warc_record(url: str, body: str, *, code: str = "200 OK", kind: str = "text/html") -> bytes:
    http = f"HTTP/1.1 {code}\r\nContent-Type: {kind}\r\n\r\n{body}".encode()
    head = (
        f"WARC/1.0\r\nWARC-Type: response\r\nWARC-Target-URI: {url}\r\n"
        "WARC-Date: 2026-01-01T00:00:00Z\r\nWARC-Record-ID: <urn:uuid:1>\r\n"
        f"Content-Type: application/http; msgtype=response\r\nContent-Length: {len(http)}\r\n\r\n"
    )
    return head.encode() + http + b"\r\n\r\n"


def test_a_page_s_main_text_is_the_document(tmp_path: Path) -> None:
    pytest.importorskip("trafilatura", reason="needs pip install 'triax[web]'")
    (tmp_path / "a.html").write_text(PAGE.format(text="Schön."))
    (tmp_path / "b.html").write_text("")
    (tmp_path / "c.html").write_bytes(b"\x00\xff<<<")
    found = read(tmp_path)
    assert "Schön. Whole documents stay whole" in found[0] and "packed like any other" in found[0]
    assert not any(word in found[0] for word in ("track", "Copyright", "All articles"))
    assert len(found) == 1 or "Whole" not in found[1]


def test_a_crawl_s_pages_are_documents(tmp_path: Path) -> None:
    pytest.importorskip("trafilatura", reason="needs pip install 'triax[web]'")
    pages = [
        warc_record("http://x/1", PAGE.format(text="One.")),
        warc_record("http://x/gone", PAGE.format(text="Gone."), code="404 Not Found"),
        warc_record("http://x/data", "{}", kind="application/json"),
        warc_record("http://x/2", PAGE.format(text="Two."), kind="text/html; charset=utf-8"),
    ]
    path = tmp_path / "crawl.warc.gz"
    path.write_bytes(b"".join(map(gzip.compress, pages)))  # a member each, as crawlers write them
    found = records(path)
    assert [record.fields["url"] for record in found] == ["http://x/1", "http://x/2"]
    assert "One. Whole" in found[0].text and "Two. Whole" in found[1].text
    assert [record.number for record in found] == [1, 4]
    path.write_bytes(path.read_bytes()[:-40])
    with pytest.raises(UserError, match=r"crawl\.warc\.gz.*fetch it again"):
        read(path)
    plain = tmp_path / "no.warc"
    plain.write_text("what is this\n" * 5)
    with pytest.raises(UserError, match=r"no\.warc.*fetch it again"):
        read(plain)


def test_without_the_extra_a_page_says_what_to_install(tmp_path: Path) -> None:
    (tmp_path / "a.html").write_text(PAGE)
    code = (
        "import sys\nsys.modules['trafilatura'] = None\n"
        "from triax.data.prepare.text import iter_documents\nlist(iter_documents(sys.argv[1:]))\n"
    )
    ended = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path)], capture_output=True, text=True, check=False
    )
    assert "a.html: web pages need trafilatura" in ended.stderr
    assert "pip install 'triax[web]'" in ended.stderr
    shutil.rmtree(tmp_path)
