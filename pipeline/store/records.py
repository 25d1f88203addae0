"""The data contracts between stages: Arrow schemas, and the handles that pass from asset to asset.

In: nothing. Out: PAGE, DOCUMENT, SIGNALS, DROPPED and EVIDENCE (Parquet, zstd), and the frozen handles, which
name a finished folder and contain no data. The schema of token shards is in model/data/token_shards.py, because
training reads them without this package.

A page is one text as it was collected: a web page, a file, a line of a jsonl file, an article of a wiki dump.
A page becomes at most one document, so counts add up at every stage: in = kept + dropped.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

PREVIEW_CHARACTERS = 200  # length of the preview of a dropped text
NO_TEXT = re.compile("[\ufffd\x00-\x08\x0e-\x1a\x1c-\x1f]")  # undecodable bytes and control characters
DENIED = "denied"  # reason of a row that is in the deny list
FAILED_AGAIN = "repeatedly_"  # prefix of the reason of a row that its worker failed on in two builds

QUALITY_RATIOS = (  # in the order of the rules that use them
    "mean_word_length",  # letters; null if most words are estimated, in scripts without spaces
    "hash_ratio",  # number signs per word
    "ellipsis_ratio",  # ellipses per word
    "bullet_line_fraction",
    "ellipsis_line_fraction",
    "alphabetic_word_fraction",  # words with a letter, among all words including punctuation
    "alphabetic_chunk_fraction",  # the same for text between white space
    "duplicate_paragraph_fraction",
    "duplicate_paragraph_characters",  # fraction of all characters, as the next ones
    "duplicate_line_fraction",
    "duplicate_line_characters",
    *(f"top_{n}_gram" for n in (2, 3, 4)),
    *(f"duplicate_{n}_gram" for n in range(5, 11)),
    # of the text; of what C4 keeps of it; of what it keeps when lines without terminal punctuation are removed too
    *(
        f"{lines}{name}"
        for lines in ("", "c4_", "c4_terminated_")
        for name in ("terminal_line_fraction", "short_line_fraction", "repeated_line_characters", "newline_ratio")
    ),
)
QUALITY_NUMBERS = (
    "n_stop_words",  # how many of Gopher's eight occur
    *(
        f"c4_{lines}{name}"
        for lines in ("", "terminated_")
        for name in ("sentences", "lorem_ipsum_lines", "curly_bracket_lines")
    ),
)

PAGE = pa.schema(
    [
        pa.field("id", pa.string(), nullable=False),  # xxh3_128 of url and content, 32 hex digits
        pa.field("source", pa.string(), nullable=False),  # table name in sources.toml
        pa.field("url", pa.string(), nullable=False),  # file:// for local files, pypi:// for package members
        pa.field("media_type", pa.string(), nullable=False),  # text/html, text/plain, text/markdown, text/x-wiki
        pa.field("title", pa.string()),  # if the container has one (wiki dump, jsonl)
        pa.field("content", pa.binary(), nullable=False),
        pa.field("collected_at", pa.timestamp("s", tz="UTC"), nullable=False),
        pa.field("licence", pa.string()),
        pa.field("http_status", pa.int32()),
        pa.field("http_headers", pa.string()),  # JSON object
        pa.field("context", pa.string()),  # JSON object: what its container says about its markup (wiki_dump.py)
    ]
)

DOCUMENT = pa.schema(
    [
        pa.field("id", pa.string(), nullable=False),  # xxh3_128 of the normalised text: equal text, equal id
        pa.field("page_id", pa.string(), nullable=False),  # unique within a corpus
        pa.field("source", pa.string(), nullable=False),
        pa.field("url", pa.string(), nullable=False),
        pa.field("title", pa.string()),
        pa.field("licence", pa.string()),
        pa.field("media_type", pa.string(), nullable=False),  # of its page
        pa.field("extractor", pa.string(), nullable=False),  # of the text: trafilatura, pdf, ...
        pa.field("code_language", pa.string()),  # set for source code
        pa.field("n_mojibake", pa.int32(), nullable=False),  # lines whose encoding was repaired
        pa.field("n_boilerplate_lines", pa.int32(), nullable=False),  # lines removed as cookie notices and the like
        # of a wiki: templates inside sentences that are not known, so that their values are shown; null = no wiki
        pa.field("n_unknown_templates", pa.int32()),
        pa.field("text", pa.large_string(), nullable=False),
    ]
)

# What `signals` measures on every document, so that a threshold can change without reading the text again. Rows have
# the order of the document shard of the same name. quality.py defines how each value is counted.
MEASURES = pa.schema(
    [
        pa.field("language", pa.string(), nullable=False),  # ISO 639-1; und = undetermined
        pa.field("language_confidence", pa.float64(), nullable=False),  # 0 to 1
        pa.field("n_words", pa.int64(), nullable=False),  # words that are not only punctuation (corpus/words.py)
        *(pa.field(name, pa.float64(), nullable=name == "mean_word_length") for name in QUALITY_RATIOS),
        *(pa.field(name, pa.int64(), nullable=False) for name in QUALITY_NUMBERS),
        pa.field(
            "profane_word_fraction", pa.float64()
        ),  # share of the words, 0 to 1; null if there is no list for the language
        pa.field("adult_word_fraction", pa.float64()),
    ]
)
EDIT = pa.struct(
    [
        pa.field("start", pa.int32(), nullable=False),  # characters of the text
        pa.field("end", pa.int32(), nullable=False),
        pa.field("kind", pa.string(), nullable=False),  # one of PII_KINDS, or a line that C4 removes (c4.py)
    ]
)
SIGNALS = pa.schema(
    [
        pa.field("page_id", pa.string(), nullable=False),
        *MEASURES,
        pa.field("edits", pa.list_(EDIT), nullable=False),  # sorted by start
        pa.field("failure", pa.string()),  # timeout, crash, out_of_memory or error: nothing was measured
    ]
)
# What `filter` keeps. Signals are those of the text before masking and removal of lines.
FILTERED = pa.schema(
    [
        *DOCUMENT,
        *MEASURES,
        pa.field("pii", pa.map_(pa.string(), pa.int32()), nullable=False),  # kind -> places found, masked or not
        pa.field("n_masked", pa.int32(), nullable=False),  # number of masked places
    ]
)

# Columns that dedup and split add.
CORPUS = pa.schema(
    [
        *FILTERED,
        pa.field("cluster_id", pa.string(), nullable=False),  # page_id of the kept member
        pa.field("cluster_size", pa.int64(), nullable=False),  # 1 = no similar document was seen
        pa.field("family_id", pa.string(), nullable=False),  # of documents that overlap: all on one side of the split
    ]
)
SPLIT_CORPUS = pa.schema([*CORPUS, pa.field("split", pa.string(), nullable=False)])
SPLITS = ("train", "validation", "test")

DROPPED = pa.schema(
    [
        pa.field("id", pa.string(), nullable=False),  # document id, or page id if the page gave no text
        pa.field("page_id", pa.string(), nullable=False),
        pa.field("source", pa.string(), nullable=False),
        pa.field("url", pa.string(), nullable=False),
        pa.field("stage", pa.string(), nullable=False),
        pa.field("reason", pa.string(), nullable=False),
        pa.field("score", pa.float64()),  # the value that broke the rule
        pa.field("preview", pa.string(), nullable=False),
    ]
)
PAGE_NAMES = ("id", "page_id", "source", "url")  # columns that a dropped row takes from its page or document


def preview_of(text: str) -> str:
    """The beginning of a text for a dropped row; empty if it is the bytes of a file that is no text."""
    head = text[:PREVIEW_CHARACTERS]
    return "" if len(NO_TEXT.findall(head)) > 0.05 * len(head) + 1 else head


def dropped_row(page: Mapping[str, Any], stage: str, reason: str, score: float | None = None) -> dict[str, Any]:
    """A row of DROPPED. `page` has PAGE_NAMES and `text`; of a denied page no text is kept."""
    preview = "" if reason == DENIED else preview_of(page["text"])
    names = {name: page[name] for name in PAGE_NAMES}
    return {**names, "stage": stage, "reason": reason, "score": score, "preview": preview}


def dropped_rows(documents: pa.Table, stage: str, reasons: Any, scores: Any) -> pa.Table:
    """Rows of DROPPED for a table of documents, each with its reason and score."""
    options = pc.SliceOptions(0, PREVIEW_CHARACTERS)
    previews = pc.call_function("utf8_slice_codeunits", [documents["text"]], options).cast(pa.string())
    is_open = pc.call_function("not_equal", [reasons, DENIED])
    columns = {
        **{name: documents[name] for name in PAGE_NAMES},
        "stage": pa.array([stage] * documents.num_rows, pa.string()),
        "reason": reasons,
        "score": scores,
        "preview": pc.call_function("if_else", [is_open, previews, ""]),
    }
    return pa.table(columns, schema=DROPPED)


# A document has at least one; the columns before `headings` are those of its document.
PASSAGE = pa.schema(
    [
        pa.field("id", pa.string(), nullable=False),
        pa.field("page_id", pa.string(), nullable=False),
        pa.field("source", pa.string(), nullable=False),
        pa.field("url", pa.string(), nullable=False),
        pa.field("title", pa.string()),
        pa.field("headings", pa.list_(pa.string()), nullable=False),  # under which it stands, the highest first
        pa.field("start", pa.int64(), nullable=False),  # characters of the text of the document
        pa.field("end", pa.int64(), nullable=False),
        pa.field("text", pa.large_string(), nullable=False),  # text of the document[start:end]
    ]
)

EVIDENCE = pa.schema(
    [
        pa.field("kept_id", pa.string(), nullable=False),
        pa.field("dropped_id", pa.string(), nullable=False),
        pa.field("kept_page_id", pa.string(), nullable=False),
        pa.field("dropped_page_id", pa.string(), nullable=False),
        pa.field("rule", pa.string(), nullable=False),  # exact, similarity or containment
        pa.field("similarity", pa.float64(), nullable=False),  # Jaccard of word 5-grams, 0 to 1
        pa.field("containment", pa.float64(), nullable=False),  # share of the shorter text in the longer one, 0 to 1
        pa.field("bands_shared", pa.int32(), nullable=False),  # MinHash bands; 0 = exact copy, or found by the sample
    ]
)

# What `dedup_lines` removed, in the order of page and position. A row of kind `document` instead means that the rest
# of a document equals the text of another document, which is kept.
REPEATED = pa.schema(
    [
        pa.field("page_id", pa.string(), nullable=False),
        pa.field("id", pa.string(), nullable=False),  # of the document before lines were removed
        pa.field("source", pa.string(), nullable=False),
        pa.field("site", pa.string(), nullable=False),  # host of the URL, or the source if it has none
        pa.field("kind", pa.string(), nullable=False),  # line, paragraph or document
        pa.field("position", pa.int64(), nullable=False),  # characters of the text before
        pa.field("characters", pa.int64(), nullable=False),
        pa.field("documents", pa.int64(), nullable=False),  # documents of the site that contain it
        pa.field("site_documents", pa.int64(), nullable=False),
        pa.field("kept_id", pa.string()),  # for kind document: the one that is kept
        pa.field("kept_page_id", pa.string()),
        pa.field("preview", pa.string(), nullable=False),
    ]
)


# What `decontaminate` found in a document: one row per example of which it contains too much.
PIECE = pa.struct(
    [
        pa.field("start", pa.int64(), nullable=False),  # characters of the text
        pa.field("end", pa.int64(), nullable=False),
    ]
)
CONTAMINATION = pa.schema(
    [
        pa.field("id", pa.string(), nullable=False),  # of the document before the cut
        pa.field("page_id", pa.string(), nullable=False),
        pa.field("new_id", pa.string()),  # of the remaining text; null = dropped
        pa.field("task", pa.string(), nullable=False),
        pa.field("example_id", pa.string(), nullable=False),
        pa.field("example_split", pa.string(), nullable=False),
        pa.field("n_shared", pa.int64(), nullable=False),  # distinct runs of words
        pa.field("example_share", pa.float64(), nullable=False),  # of the example's runs, 0 to 1
        pa.field("document_share", pa.float64(), nullable=False),  # of the document's words, 0 to 1
        pa.field("start", pa.int64(), nullable=False),  # characters of the text before the cut, first run found
        pa.field("end", pa.int64(), nullable=False),
        pa.field("preview", pa.string(), nullable=False),  # the text there
        pa.field("left", pa.list_(PIECE), nullable=False),  # what is kept of the document; none = dropped
    ]
)


@dataclass(frozen=True, kw_only=True, slots=True)
class Handle:
    """A finished folder of one stage. `digest` identifies its content, `fingerprint` what it was built from."""

    stage: str
    directory: Path
    fingerprint: str  # recipe: stage, version, libraries, config, digests of the inputs
    digest: str  # content: equal bytes, equal digest, on any machine
    rows: int


@dataclass(frozen=True, kw_only=True, slots=True)
class Shards(Handle):
    """Pages, documents (Parquet) or tokens (Arrow IPC); dropped and evidence rows in sub-folders."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Columns(Handle):
    """Measurements on documents: shards with the names and the order of rows of another output."""


@dataclass(frozen=True, kw_only=True, slots=True)
class TokenizerFile(Handle):
    """The files of corpus/tokens/tokenizer_files.py and a report; rows = vocabulary size."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Checkpoint(Handle):
    """Final weights, config, tokenizer and curve of a trained model; rows = training steps."""


@dataclass(frozen=True, kw_only=True, slots=True)
class DenyList(Handle):
    """denied.parquet: what must not enter the corpus; rows = number of keys."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Report(Handle):
    """results.json (a list of results), figures and tables; rows = number of evaluated items."""


HANDLES: dict[str, type[Handle]] = {
    kind.__name__: kind for kind in (Shards, Columns, DenyList, TokenizerFile, Checkpoint, Report)
}


@dataclass(kw_only=True, slots=True)
class Counts:
    """Counts of the rows of a stage. Conservation: rows_in == kept + sum(dropped.values())."""

    rows_in: int = 0
    kept: int = 0
    dropped: dict[str, int] = field(default_factory=dict)  # reason -> rows
    # rows, dropped or kept without a result, that no worker process could finish: reason -> rows. Those with the
    # prefix FAILED_AGAIN are final, the others are tried again by the next build
    lost: dict[str, int] = field(default_factory=dict)

    @property
    def n_transient(self) -> int:
        return sum(rows for reason, rows in self.lost.items() if not reason.startswith(FAILED_AGAIN))

    def drop(self, reason: str, rows: int = 1) -> None:
        self.dropped[reason] = self.dropped.get(reason, 0) + rows

    def add(self, other: "Counts") -> None:
        self.rows_in += other.rows_in
        self.kept += other.kept
        for reason, rows in other.dropped.items():
            self.drop(reason, rows)
        for reason, rows in other.lost.items():
            self.lost[reason] = self.lost.get(reason, 0) + rows

    def is_conserved(self) -> bool:
        return self.rows_in == self.kept + sum(self.dropped.values())
