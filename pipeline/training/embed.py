"""Stage `embed`: turns passages into vectors, by an encoder.

In: passage shards and the encoder. Out: passages.parquet with all passages in the order of their addresses, vectors
in vectors.npy (a row per passage, float32, of length 1), and in dropped/ the passages that repeat another one word
for word under the same title and headings: a search would find the same text several times.

A vector depends on its passage alone, because each is computed by itself (on a CPU that takes hardly longer than in
batches, whose other texts change the last bits). So those of passages that an earlier output of the same encoder has
are taken from there, and a changed page costs only its own passages. Vectors that are done are kept in a hidden
folder until the output is whole, so that a killed build continues.
"""

import logging
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from pipeline.corpus.passages.stage import check_encoder
from pipeline.store.record_file import read_record
from pipeline.store.records import DROPPED, PASSAGE, Checkpoint, Columns, Counts, Shards, dropped_rows
from pipeline.store.shards import DROPPED_FOLDER, read_table, replacing, shard_paths, text_digest, write_table
from pipeline.store.store import DEVICE, UNICODE, Outcome, Stage, Work

PASSAGES_FILE, VECTORS_FILE, DIGESTS_FILE = "passages.parquet", "vectors.npy", "digests.npy"
DONE = ".done"  # folder of vectors until the output is finished
AT_ONCE = 500  # passages whose vectors become one file of it
REPEATED = "repeated"
DIGEST_TYPE = "S32"  # of what is embedded, as hex digits
log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True, slots=True)
class EmbedConfig:
    """How passages are embedded: nothing can be chosen but the encoder."""


def embed_passages(cfg: EmbedConfig, inputs: tuple[Shards, Checkpoint], work: Work) -> Outcome:
    """The stage function."""
    del cfg
    passages, embedder = inputs
    check_encoder(embedder)
    shards = [read_table(path, PASSAGE) for path in shard_paths(passages.directory)]
    table = pa.concat_tables([PASSAGE.empty_table(), *shards])
    table = table.sort_by([("url", "ascending"), ("page_id", "ascending"), ("start", "ascending")])
    texts = embedded_texts(table)
    digests = [text_digest(text) for text in texts]
    kept, repeated = _first_places(digests)
    n_known, vectors = _vectors([texts[place] for place in kept], [digests[place] for place in kept], embedder, work)
    _write(work.directory, table.take(pa.array(kept, pa.int64())), vectors, [digests[place] for place in kept])
    _write_dropped(work, table.take(pa.array(repeated, pa.int64())))
    shutil.rmtree(work.directory / DONE, ignore_errors=True)
    n_new = len(kept) - n_known
    log.info("%s passages: %s embedded, %s with known vectors", f"{len(kept):,}", f"{n_new:,}", f"{n_known:,}")
    counts = Counts(rows_in=table.num_rows, kept=len(kept), dropped={REPEATED: len(repeated)} if repeated else {})
    documents = len(table["page_id"].unique())
    measures = {"documents": documents, "passages": len(kept), "embedded": n_new, "reused": n_known}
    return Outcome(rows=len(kept), counts=counts, measures=measures)


EMBED = Stage(
    name="embed",
    version=1,
    function=embed_passages,
    handle=Columns,
    libraries=("numpy", "regex", "tiktoken", "tokenizers", "torch", DEVICE, UNICODE),
)


def embedded_texts(table: pa.Table) -> list[str]:
    """What is embedded of each passage: its text below title and headings."""
    from model.retrieval.retriever import searched_text

    rows = zip(*(table[name].to_pylist() for name in ("title", "headings", "text")), strict=True)
    return [searched_text(title or "", headings, text) for title, headings, text in rows]


def _first_places(digests: Sequence[str]) -> tuple[list[int], list[int]]:
    """The first place of each digest, and all other places."""
    first: dict[str, int] = {}
    for place, digest in enumerate(digests):
        first.setdefault(digest, place)
    kept = list(first.values())
    return kept, sorted(set(range(len(digests))) - set(kept))


def _vectors(
    texts: Sequence[str], digests: Sequence[str], embedder: Checkpoint, work: Work
) -> tuple[int, np.ndarray]:
    """How many vectors an earlier output has, and all vectors (N, D)."""
    known: dict[str, np.ndarray] = {}
    wanted = set(digests)
    for folder in _earlier(embedder, work):
        if missing := wanted - known.keys():
            known |= _read(folder, missing)
    n_known = len(known)
    done = work.directory / DONE  # what a killed build of the same output has done
    known |= {name: one for path in sorted(done.glob("*.npz")) for name, one in _read_done(path) if name in wanted}
    missing = [place for place, digest in enumerate(digests) if digest not in known]
    for start in range(0, len(missing), AT_ONCE):
        places = missing[start : start + AT_ONCE]
        found = dict(zip([digests[p] for p in places], _embedded([texts[p] for p in places], embedder), strict=True))
        if len(missing) > AT_ONCE:
            _write_done(done / f"{digests[places[0]]}.npz", found)
        known |= found
        work.progress(len(digests) - len(missing) + start + len(places), len(digests), "passages")
    return n_known, np.stack([known[digest] for digest in digests]) if digests else np.zeros((0, 0), np.float32)


def _embedded(texts: Sequence[str], embedder: Checkpoint) -> Iterator[np.ndarray]:
    from model.generation.embed import embed

    model, tokenizer = _loaded(embedder.directory)
    for text in texts:
        yield embed(model, tokenizer, [text])[0]


def _loaded(directory: Path) -> tuple[Any, Any]:
    from model.data.tokenizer import load_model_tokenizer
    from model.network.registry import load_encoder
    from model.training.placement import for_evaluation

    model = for_evaluation(load_encoder(directory))
    return model, load_model_tokenizer(directory, model.cfg.vocab_size)


def _earlier(embedder: Checkpoint, work: Work) -> Iterator[Path]:
    """Finished outputs of this stage with vectors that this build would compute too, the newest first."""
    found = []
    for folder in work.parts.parent.glob("*"):
        record = read_record(folder) if folder.is_dir() else None
        if record is None or record["stage"] != work.stage or record["version"] != EMBED.version:
            continue
        if record["libraries"] == work.libraries and embedder.digest == record["inputs"][1]["digest"]:
            found.append((record["finished_at"], folder))
    yield from (folder for _, folder in sorted(found, reverse=True))


def _read(folder: Path, wanted: set[str]) -> dict[str, np.ndarray]:
    digests = np.load(folder / DIGESTS_FILE, allow_pickle=False).astype(str).tolist()
    places = [place for place, digest in enumerate(digests) if digest in wanted]
    vectors = np.load(folder / VECTORS_FILE, mmap_mode="r", allow_pickle=False)
    return {digests[place]: np.array(vectors[place]) for place in places}


def _write(directory: Path, passages: pa.Table, vectors: np.ndarray, digests: Sequence[str]) -> None:
    write_table(directory / PASSAGES_FILE, passages)
    for name, array in ((VECTORS_FILE, vectors), (DIGESTS_FILE, np.array(digests, DIGEST_TYPE))):
        with replacing(directory / name) as part, part.open("wb") as file:
            np.save(file, array, allow_pickle=False)


def _write_dropped(work: Work, repeated: pa.Table) -> None:
    if repeated.num_rows:
        reasons = pa.array([REPEATED] * repeated.num_rows, pa.string())
        rows = dropped_rows(repeated, work.stage, reasons, pa.nulls(repeated.num_rows, pa.float64()))
        write_table(work.directory / DROPPED_FOLDER / PASSAGES_FILE, rows.cast(DROPPED))


def _write_done(path: Path, found: dict[str, np.ndarray]) -> None:
    with replacing(path) as part, part.open("wb") as file:
        np.savez(file, digests=np.array(list(found), DIGEST_TYPE), vectors=np.stack(list(found.values())))


def _read_done(path: Path) -> Iterator[tuple[str, np.ndarray]]:
    with np.load(path, allow_pickle=False) as file:
        yield from zip(file["digests"].astype(str).tolist(), file["vectors"], strict=True)


def read_passages(directory: Path) -> tuple[pa.Table, np.ndarray]:
    """The passages of a finished output, and their vectors (N, D)."""
    table = read_table(directory / PASSAGES_FILE, PASSAGE)
    vectors = np.load(directory / VECTORS_FILE, allow_pickle=False)
    return table, vectors


def documents_in(directory: Path) -> list[dict[str, str]]:
    """Id, page id and address of each document of which a finished output has a passage, under all its addresses."""
    columns = ["id", "page_id", "url"]
    kept, *repeated = [read_table(path, columns=columns) for path in _tables(directory)]
    known = set(kept["id"].to_pylist())
    rows = pa.concat_tables([kept, *repeated]).group_by(columns, use_threads=False).aggregate([]).to_pylist()
    return [row for row in rows if row["id"] in known]


def _tables(directory: Path) -> list[Path]:
    return [directory / PASSAGES_FILE, *shard_paths(directory, DROPPED_FOLDER)]
