"""Documents become passages: nothing is lost, what is denied is left out, and only what changed is cut again."""

import dataclasses
import json

import pytest

from pipeline.corpus.deny_list import deny_list
from pipeline.corpus.passages import stage as module
from pipeline.corpus.passages.stage import PASSAGES, PassagesConfig
from pipeline.store.records import PASSAGE, Checkpoint
from pipeline.store.shards import DROPPED_FOLDER, read_table, shard_paths
from pipeline.store.verdict import conservation

CFG = PassagesConfig(passage_tokens=64)
MANUAL = """# The mill

The mill grinds grain between two stones. It was built in 1704.

## The wheel

The wheel turns in the river. Its paddles are of oak, and each is as long as a man.

- grease it in May
- clear it of leaves in October
"""
TEXTS = {
    "file:///m/mill.md": MANUAL,
    "file:///m/short.txt": "Closed on Mondays.",
    "file:///m/long.txt": " ".join(f"Sack {i} holds rye." for i in range(60)),
}


def rows_of(handle) -> list[dict]:
    return [row for path in shard_paths(handle.directory) for row in read_table(path, PASSAGE).to_pylist()]


def test_passages_are_pieces_of_their_documents_and_nothing_but_white_space_is_lost(store, cleaned, embedder):
    built = store.build(PASSAGES, CFG, cleaned(store, TEXTS), embedder)
    rows = rows_of(built.handle)
    assert built.handle.rows == len(rows) > len(TEXTS)
    for url, text in TEXTS.items():
        own = [row for row in rows if row["url"] == url]
        assert [row["text"] for row in own] == [text[row["start"] : row["end"]] for row in own]
        assert "".join("".join(row["text"].split()) for row in own) == "".join(text.split())
        assert all(len(row["text"].encode()) <= CFG.passage_tokens for row in own)
    assert {row["url"] for row in rows} == set(TEXTS)  # a short page, too
    wheel = next(row for row in rows if "paddles" in row["text"])
    assert wheel["headings"] == ["The mill", "The wheel"]
    assert built.counts.rows_in == built.counts.kept == 3
    assert conservation(built.handle).passed


def test_passages_of_a_denied_document_are_left_out_and_only_its_shard_is_cut_again(
    store, cleaned, embedder, tmp_path, monkeypatch
):
    documents = cleaned(store, TEXTS)
    store.build(PASSAGES, CFG, documents, embedder)
    denied = tmp_path / "denied.jsonl"
    denied.write_text(json.dumps({"url": "file:///m/short.txt", "date": "2026-01-31", "reason": "asked for"}))
    cut, cuts_of = [], module.cuts_of
    monkeypatch.setattr(module, "cuts_of", lambda item: cut.append(item.row["url"]) or cuts_of(item))
    built = store.build(PASSAGES, CFG, documents, embedder, *deny_list(store, denied))
    assert {row["url"] for row in rows_of(built.handle)} == set(TEXTS) - {"file:///m/short.txt"}
    assert built.counts.dropped == {"denied": 1} and conservation(built.handle).passed
    (dropped,) = [
        row for path in shard_paths(built.handle.directory, DROPPED_FOLDER) for row in read_table(path).to_pylist()
    ]
    assert dropped["reason"] == "denied" and not dropped["preview"]
    assert "file:///m/short.txt" in cut and len(cut) < len(TEXTS)


def test_passages_of_an_encoder_with_the_same_tokenizer_are_not_cut_again(store, cleaned, embedder, monkeypatch):
    documents = cleaned(store, TEXTS)
    first = store.build(PASSAGES, CFG, documents, embedder).handle
    monkeypatch.setattr(module, "cuts_of", None)
    other = dataclasses.replace(embedder, fingerprint="f", digest="f")
    again = store.build(PASSAGES, CFG, documents, other).handle
    assert again.digest == first.digest and again.fingerprint != first.fingerprint


def test_embedder_that_is_a_decoder_is_refused_by_name(store, cleaned, base):
    with pytest.raises(ValueError, match=r"key embedder .* a model of kind 'decoder'.* it needs an encoder"):
        store.build(PASSAGES, CFG, cleaned(store, TEXTS), base)


def test_no_documents_give_no_passages(store, cleaned, embedder):
    handle = store.build(PASSAGES, CFG, cleaned(store, {}), embedder).handle
    assert handle.rows == 0 and isinstance(embedder, Checkpoint)
