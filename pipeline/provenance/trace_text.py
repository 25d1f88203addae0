"""Finds the documents and labelled examples that contain a text.

In: a text of any length and the chain of outputs (trace_chain.py). Out: TextMatches, best first. Steps, of which the
first that finds something decides: the hash of the whole text, which is the id of an equal document; the runs of
words that dedup stores for every document (a share of them, by index), whose best documents are read to count all
runs; last, for a text that is too short or not found, all texts are searched for its first words, for a limited time.
DuckDB is imported where it is used.
"""

import re
import threading
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from pipeline.corpus.dedup.shingles import Shingler
from pipeline.corpus.examples.stage import EXAMPLE
from pipeline.corpus.text_repair import normalised
from pipeline.corpus.word_hashes import WORD
from pipeline.provenance.exposure import Say, finished_checkpoints
from pipeline.provenance.trace_chain import TraceChain, read_row
from pipeline.provenance.trace_index import KEYS, PASSAGES, has_passages, open_index
from pipeline.store.chain import stages_with_texts
from pipeline.store.lineage import Folder, folder_of
from pipeline.store.records import Handle
from pipeline.store.shards import duckdb_files, shard_paths, text_digest

MOST_MATCHES = 5  # that are traced
MOST_READ = 8  # documents that are read to count all their runs of words
LEAST_CONTAINMENT = 0.1  # of a text in a document that is reported
FEWEST_WORDS = 3  # of a text to search for
SEARCHED_WORDS, SEARCHED_CHARACTERS = 32, 400  # length of the beginning of a text that is searched for
MOST_CHARACTERS = 20_000_000  # of a text to look for
SEARCH = """
SELECT page_id, url FROM read_parquet($files, hive_partitioning = false)
WHERE regexp_matches(text, $pattern) LIMIT $most
"""


@dataclass(frozen=True, kw_only=True, slots=True)
class TextMatch:
    page_id: str
    url: str
    how: str  # equal, passage (runs of words) or search
    containment: float  # share of the runs of words of the text in the document, 0 to 1


@dataclass(frozen=True, kw_only=True, slots=True)
class ExampleTrace:
    """A labelled example, and the models that were fine-tuned on its task."""

    asset: str
    directory: Path
    example_id: str
    where: str
    row: int
    split: str | None  # None = dropped
    label: str | None
    reason: str | None
    models: tuple[Path, ...]  # checkpoints trained on the train split of these examples


def find_text(chain: TraceChain, text: str, say: Say, seconds: float) -> list[TextMatch]:
    """At most MOST_MATCHES documents that contain `text`, best first. Raises ValueError for a text without words."""
    if len(text) > MOST_CHARACTERS:
        raise ValueError(f"the text has {len(text):,} characters, the limit is {MOST_CHARACTERS:,}")
    if not text.strip():
        raise ValueError("the text is empty; give some words of it")
    if equal := chain.pages(text_digest(normalised(text)), MOST_MATCHES):
        return [TextMatch(page_id=page, url=url, how="equal", containment=1.0) for page, url in equal.items()]
    for folder in chain.of("dedup"):
        if has_passages(folder) and (found := list(_by_passages(chain, folder, text))):
            return sorted(found, key=lambda match: (-match.containment, match.url))[:MOST_MATCHES]
    return _by_search(chain, text, say, seconds) if seconds > 0 else []


def find_examples(store: Path, handles: Mapping[str, Handle], query: str, say: Say) -> list[ExampleTrace]:
    """Examples whose id, or whose text, is `query`."""
    from pipeline.corpus.examples.near_texts import normalised as normalised_example

    ids = [query] if len(query) < 100 else []
    ids.append(text_digest(normalised_example(query)))
    found = []
    for asset, handle in sorted(handles.items()):
        if handle.stage != "examples":
            continue
        folder = folder_of(handle)
        index = open_index(store, folder, KEYS, say)
        for row in sorted({row for one in ids for row in index.rows_of("id", one)}):
            found.append(_example(store, asset, folder, index.value("id", row), *index.place(row)))
    return found


def is_text(query: str) -> bool:
    """Whether `query` can be a text: several words separated by spaces, or in a script without spaces."""
    words = WORD.findall(query[:10_000])
    spaceless = any(len(word) == 1 and not word.isascii() for word in words)
    return len(words) >= FEWEST_WORDS and "://" not in query[:50] and (spaceless or len(query.split()) > 1)


def text_file(query: str) -> str | None:
    """The text of the file that `query` names; None if there is no such file."""
    if "\0" in query or "\n" in query or len(query) > 4096:
        return None
    try:
        path = Path(query)
        if not path.is_file():
            return None
        with path.open("rb") as file:
            return file.read(4 * MOST_CHARACTERS).decode(errors="replace")
    except OSError:
        return None


def _by_passages(chain: TraceChain, folder: Folder, text: str) -> Iterator[TextMatch]:
    config = chain.folders[folder]["config"]
    shingler = Shingler(config["shingle_words"])
    if len(WORD.findall(text[:10_000])) < config["shingle_words"]:
        return
    runs = shingler.shingles(text)
    index = chain.index(folder, PASSAGES)
    known = runs[runs < np.uint64(2**64 // config["sample_one_in"])]
    rows, counts, n_known = index.rows_sharing(known)
    documents = chain.inputs(folder)
    for row, count in zip(rows[:MOST_READ].tolist(), counts[:MOST_READ].tolist(), strict=True):
        where, number = index.place(row)
        source = next((one for one in documents if (one.directory / Path(where).name).exists()), None)
        if source is None:  # the input of dedup was removed: use the share of the indexed runs
            (page_id,) = read_row(folder.directory / where, number, ["page_id"]).values()
            containment = count / n_known
        else:
            document = read_row(source.directory / Path(where).name, number, ["page_id", "text"])
            page_id = document["page_id"]
            held = shingler.shingles(document["text"])
            containment = float(np.isin(runs, held, assume_unique=True).mean())
        if containment >= LEAST_CONTAINMENT:
            yield TextMatch(page_id=page_id, url=chain.url_of(page_id), how="passage", containment=containment)


def _by_search(chain: TraceChain, text: str, say: Say, seconds: float) -> list[TextMatch]:
    """Reads every text, which takes seconds per GB. Raises ValueError when nothing was found in time."""
    import duckdb

    folders = [folder for stage in stages_with_texts() for folder in chain.of(stage)]
    if not folders or not (paths := _paths_of_stage(folders)):
        return []
    say(f"the index contains no run of words of this text; reading all texts, for at most {seconds:g} s")
    with duckdb.connect() as database:
        timer = threading.Timer(seconds, database.interrupt)
        timer.start()
        try:
            rows = database.execute(
                SEARCH, {"files": duckdb_files(paths), "pattern": _pattern(text), "most": MOST_MATCHES}
            ).fetchall()
        except duckdb.InterruptException:
            raise ValueError(
                f"the text was not found within {seconds:g} s; give more of its words (they are found by index), or"
                " more time by --seconds"
            ) from None
        finally:
            timer.cancel()
    return [TextMatch(page_id=page, url=url, how="search", containment=1.0) for page, url in sorted(rows)]


def _paths_of_stage(folders: Sequence[Folder]) -> list[Path]:
    """Shards of all folders of the first stage that exists."""
    return [path for folder in folders if folder.stage == folders[0].stage for path in shard_paths(folder.directory)]


def _pattern(text: str) -> str:
    """The first words of `text` as a regular expression of RE2: any case, anything but words between them."""
    words = WORD.findall(text[: 10 * SEARCHED_CHARACTERS])[:SEARCHED_WORDS] or text.split()[:SEARCHED_WORDS]
    while len(words) > 1 and sum(map(len, words)) > SEARCHED_CHARACTERS:
        words.pop()
    return "(?i)" + r"[^\pL\pN_]*".join(re.escape(word[:SEARCHED_CHARACTERS]) for word in words)


def _example(store: Path, asset: str, folder: Folder, example_id: str, where: str, row: int) -> ExampleTrace:
    values: dict[str, Any] = read_row(folder.directory / where, row)
    models = [
        checkpoint.directory
        for checkpoint, record in finished_checkpoints(store).items()
        if any(one["fingerprint"] == folder.fingerprint for one in record["inputs"])
    ]
    return ExampleTrace(
        asset=asset,
        directory=folder.directory,
        example_id=example_id,
        where=where,
        row=row,
        split=values.get("split"),
        label=", ".join(str(value) for name, value in values.items() if name not in EXAMPLE.names)
        if "split" in values
        else None,
        reason=values.get("reason"),
        models=tuple(models),
    )
