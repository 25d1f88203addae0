"""Fuzz: mutated files of every format through collect and clean, with real workers and their limits.

Each file is a valid one that the test wrote, damaged by a seeded mutator: bits, cuts, splices of two files, repeated
and inserted pieces; of zipped formats also the parts inside. A second process does the work, so that a crash of it is
seen and its memory can be measured. Every file has to come out as a page or a reason, and every page as a document or
a reason.
"""

import bz2
import gzip
import io
import json
import lzma
import random
import subprocess
import sys
import zipfile
from collections import Counter
from pathlib import Path
from types import SimpleNamespace

import pyarrow as pa
import pytest

TOKENS = [
    b"\0", b"\xff\xfe", b"\xed\xa0\x80", b"\xc2", b'"', b"'", b"\r", b"\n\n", b",", b"\t", b"&lt;",
    b"&#xD800;", b"&x;", b"<", b"</", b"<!--", b"]]>", b"<![CDATA[", b"<!DOCTYPE x [<!ENTITY x 'y'>]>",
    b"<div>", b"<table><tr><td>", b"<pre>", b"<title/>", b"<p", b"{{", b"}}", b"[[File:", b"{|", b"<ref>",
    b"'''''", b"==", b".. ", b"::\n", b"``", b"`a <", b"*", b"From x@y Mon Jan  1 10:00:00 2024\n",
    b"Content-Type: multipart/mixed; boundary=", b"=?utf-8?b?", b"--b\n", b"[", b"{", b'{"text": ', b"\\ud800",
    b"1e999", b"-1", b"9999999999", b"endobj", b"stream\n", b"/Kids[1 0 R]", b"%PDF-", b"xref", b"PK\x03\x04",
    b"PK\x05\x06", b"PAR1", b"\x1f\x8b", b"/Next 3 0 R", b"/Filter/FlateDecode", b"#!/", b"---\n",
]  # fmt: skip
HTML = """<!doctype html><html><head><title>Mill</title><meta charset="utf-8"></head><body>
<nav><a href="/">Home</a></nav>
<main><h1>The mill</h1><p>{0}</p><p>{0}</p><ul><li>{0}</li></ul><table><tr><td>rye</td><td>1</td></tr></table>
<pre>def grind(grain):
    return flour</pre><p>{0}</p></main><footer>Copyright</footer></body></html>"""
RST = """.. _mill:

Mill
====

.. toctree::
   :maxdepth: 2

   one

See :ref:`the guide <guide>` and `our site <https://example.org>`_. {0}

.. code-block:: python

    grind(x)
"""
MARKDOWN = "---\ntitle: x\n---\n# Mill\n\n<!-- hidden -->\n\n{0}\n\n```python\ngrind()\n```\n\n| a | b |\n"
WIKI = """<mediawiki xmlns="http://www.mediawiki.org/xml/export-0.10/"><page><title>Mill</title><ns>0</ns><id>1</id><revision>
<text>{{{{Infobox|a=b}}}}The '''mill'''&lt;ref&gt;x&lt;/ref&gt; [[grinds|grind]] {{{{lang|de|Korn}}}}. {0}
== History ==
* first
{{| class="wikitable"
| a table
|}}</text></revision></page><page><title>Two</title><ns>0</ns><redirect/><revision>
<text>#REDIRECT [[Mill]]</text></revision></page></mediawiki>"""
DRIVER = """
import json, resource, sys
from pathlib import Path
sys.path.insert(0, {root!r})
from pipeline.corpus.clean.stage import CLEAN, CleanConfig
from pipeline.corpus.collect.stage import CollectConfig, collect
from pipeline.corpus.collect.sources import FilesSource
from pipeline.store.engine import LocalProcesses
from pipeline.store.shards import read_table, shard_paths
from pipeline.store.store import Store

if __name__ == "__main__":
    folder = Path({folder!r})
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    store = Store(root=folder / "store", engine=LocalProcesses(n_workers=2))
    source = FilesSource(name="fuzz", licence="none", path=str(folder / "in"))
    pages = collect(store, source, folder / "cache", CollectConfig(n_shards=8, max_page_mb=4.0))
    documents = store.build(CLEAN, CleanConfig(page_seconds=60.0, page_memory_mb=1024), pages.handle)
    answer = {{
        "memory_mb": (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024,
        "conserved": pages.counts.is_conserved() and documents.counts.is_conserved(),
        "pages": pages.counts.kept,
        "pages_in": documents.counts.rows_in,
        "kept": documents.counts.kept,
    }}
    for name, built, sub in (("collected", pages, ""), ("refused", pages, "dropped"), ("cleaned", documents, ""),
                             ("dropped", documents, "dropped")):
        tables = [read_table(path) for path in shard_paths(built.handle.directory, sub)]
        answer[name] = [
            (row["url"], row.get("reason", "")) for table in tables
            for row in table.select([c for c in ("url", "reason") if c in table.column_names]).to_pylist()
        ]
    print(json.dumps(answer))
"""


def seeds(writers: SimpleNamespace) -> dict[str, bytes]:
    """A valid file of every format, by a name with its suffix."""
    text = writers.SENTENCE
    chapter = "<h1>Mill</h1><p>A <b>mill</b>.</p><ul><li>x</li></ul><table><tr><td>a</td><td>b</td></tr></table>"
    message = writers.mail("Die M\u00fchle", text)
    message.add_alternative(f"<h1>Mill</h1><p>{text}</p>", subtype="html")
    message.add_attachment(b"x" * 200, maintype="image", subtype="png", filename="a.png")
    lines = "".join(json.dumps({"text": f"{text} {i}", "title": "x"}) + "\n" for i in range(20)).encode()
    csv = "title,text\n" + "".join(f'{i},"{text}\n""{i}"""\n' for i in range(20))
    table = writers.parquet(
        {"text": [f"{text} {i}" for i in range(50)], "n": list(range(50))}, compression="none", row_group_size=20
    )
    numbering = '<w:pStyle w:val="x"/><w:numPr><w:ilvl w:val="0"/><w:numId w:val="1"/></w:numPr>'
    body = writers.docx_paragraph(text) + writers.docx_paragraph("item", numbering)
    styles = f'<w:styles xmlns:w="{writers.WORD}"><w:style w:styleId="x"><w:name w:val="List"/></w:style></w:styles>'
    body += f"<w:tbl><w:tr><w:tc>{writers.docx_paragraph('a')}</w:tc><w:tc/></w:tr></w:tbl>"
    page = writers.pdf_page([text] * 5) + "\n" + writers.pdf_line("Mill", 72, 800, 20)
    cells = [{"cell_type": "markdown", "source": ["# Mill\n", text]}, {"cell_type": "code", "source": "grind()"}]
    plain = {
        "a.html": HTML.format(text),
        "b.rst": RST.format(text),
        "c.md": MARKDOWN.format(text),
        "d.txt": f"*** START OF THE PROJECT GUTENBERG EBOOK X ***\n{text}\n*** END OF THE PROJECT GUTENBERG EBOOK",
        "e.xml": WIKI.format(text),
        "f.csv": csv,
        "g.tsv": csv.replace(",", "\t").replace("text", "words"),
        "h.py": f"#!/usr/bin/python\n# {text}\ndef f():\n    return 1\n",
        "i": "#!/bin/sh\nset -e\necho mill\n",
    }
    return {
        **{name: content.encode() for name, content in plain.items()},
        "j.xml.bz2": bz2.compress(WIKI.format(text).encode()),
        "k.jsonl": lines,
        "l.jsonl.zst": pa.compress(lines, codec="zstd", asbytes=True),
        "m.csv.gz": gzip.compress(csv.encode(), mtime=0),
        "n.txt.xz": lzma.compress(text.encode()),
        "o.json": json.dumps([{"text": text}, {"text": "b"}]).encode(),
        "p.parquet": table,
        "q.mbox": writers.mbox([message.as_bytes(), writers.mail().as_bytes()]),
        "r.eml": message.as_bytes(),
        "s.ipynb": writers.notebook(cells),
        "t.pdf": writers.pdf([page, page], title="Mill", outline=[("Mill", 0), ("Two", 1)]),
        "u.epub": writers.epub({"a.xhtml": writers.xhtml(chapter), "b.xhtml": writers.xhtml(chapter)}),
        "v.docx": writers.docx(body, parts={"word/styles.xml": styles}),
    }


def mutated(content: bytes, others: list[bytes], rng: random.Random) -> bytes:
    """`content` damaged one to four times."""
    if content.startswith(b"PK\x03\x04") and rng.random() < 0.8:
        return _with_mutated_part(content, others, rng)
    for _ in range(rng.randint(1, 4)):
        content = _damaged(content, others, rng)
    return content


def _damaged(content: bytes, others: list[bytes], rng: random.Random) -> bytes:
    start, end = sorted((rng.randrange(len(content) + 1), rng.randrange(len(content) + 1)))
    short = min(end, start + rng.choice((1, 4, 30, 200)))
    match rng.randrange(9):
        case 0:  # bits
            changed = bytearray(content)
            for _ in range(rng.choice((1, 3, 20)) if content else 0):
                changed[rng.randrange(len(changed))] ^= 1 << rng.randrange(8)
            return bytes(changed)
        case 1:
            return content[:end]
        case 2:
            return content[:start] + content[short:]
        case 3:  # a splice with another file
            other = rng.choice(others)
            cut = rng.randrange(len(other) + 1)
            return content[:start] + other[cut : cut + rng.choice((50, 500, 5000))] + content[short:]
        case 4:  # a block many times
            return content[:short] + content[start:short] * rng.choice((2, 10, 500)) + content[short:]
        case 5 | 6:  # tokens
            return content[:start] + rng.choice(TOKENS) + content[start:]
        case 7:  # a token many times, sometimes as nested as many
            return content[:start] + rng.choice(TOKENS) * rng.choice((20, 2000, 50_000)) + content[start:]
        case _:
            return content[:start] + bytes(rng.randrange(256) for _ in range(short - start)) + content[short:]


def _with_mutated_part(content: bytes, others: list[bytes], rng: random.Random) -> bytes:
    """A sound zip around a damaged part, or with a part left out."""
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        parts = {name: archive.read(name) for name in archive.namelist()}
    name = rng.choice(sorted(parts))
    part = parts.pop(name)
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED) as archive:
        for kept, body in parts.items():
            archive.writestr(kept, body)
        if rng.random() < 0.9:
            archive.writestr(name, mutated(part, others, rng))
    return out.getvalue()


def fuzz(folder: Path, writers: SimpleNamespace, n_files: int, seed: int, seconds: int) -> dict:
    """Write `n_files` damaged files, collect and clean them in a process of its own, and hold the laws."""
    rng = random.Random(seed)
    sound = seeds(writers)
    others = list(sound.values())
    (folder / "in").mkdir(parents=True)
    for i in range(n_files):
        name = list(sound)[i % len(sound)]
        content = sound[name] if i < len(sound) else mutated(sound[name], others, rng)
        (folder / "in" / f"{i:05}{'-' if '.' in name else ''}{name}").write_bytes(content)
    script = folder / "driver.py"
    script.write_text(DRIVER.format(root=str(Path(__file__).parents[3]), folder=str(folder)))
    done = subprocess.run(
        [sys.executable, str(script)], capture_output=True, text=True, timeout=seconds, check=False, cwd=folder
    )
    assert done.returncode == 0, done.stderr[-3000:]
    answer = json.loads(done.stdout.splitlines()[-1])
    assert answer["conserved"] and answer["pages"] == answer["pages_in"]
    assert len(answer["collected"]) == answer["pages"]
    assert len(answer["cleaned"]) + len(answer["dropped"]) == answer["pages"]
    seen = {url.partition("#")[0].rpartition("/")[2] for key in ("collected", "refused") for url, _ in answer[key]}
    assert seen >= {path.name for path in (folder / "in").iterdir()}
    return answer


def reasons(answer: dict) -> Counter[tuple[str, str]]:
    """(format, reason) of what clean dropped."""
    names = ((url.partition("#")[0].rpartition("/")[2], reason) for url, reason in answer["dropped"])
    return Counter((name[5:].lstrip("-"), reason) for name, reason in names)


def test_fuzz_a_few_damaged_files_of_every_format_are_pages_or_reasons(writers, tmp_path):
    answer = fuzz(tmp_path, writers, n_files=154, seed=1, seconds=800)
    costly = {
        key: n for key, n in reasons(answer).items() if key[1] in ("error", "crash", "timeout", "out_of_memory")
    }
    assert not costly
    sound = {url.rpartition("/")[2][:5] for url, _ in answer["cleaned"] if url.rpartition("/")[2][:5] < "00022"}
    assert len(sound) == 22
    assert answer["memory_mb"] < 500


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_fuzz_three_thousand_damaged_files_are_pages_or_reasons(writers, tmp_path):
    answer = fuzz(tmp_path, writers, n_files=3000, seed=2, seconds=1700)
    costly = {
        key: n for key, n in reasons(answer).items() if key[1] in ("error", "crash", "timeout", "out_of_memory")
    }
    assert not costly
    assert answer["memory_mb"] < 500
