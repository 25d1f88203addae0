"""Passages become vectors: of unchanged passages never twice, and the same whatever was built before."""

import json
import shutil

import numpy as np
import pytest

from model.data.tokenizer import load_model_tokenizer
from model.generation.embed import embed
from model.network.registry import load_encoder
from pipeline.corpus.passages.stage import PASSAGES, PassagesConfig
from pipeline.store.shards import DROPPED_FOLDER, read_table
from pipeline.store.verdict import conservation
from pipeline.training import embed as module
from pipeline.training.embed import EMBED, EmbedConfig, documents_in, embedded_texts, read_passages

TEXTS = {f"file:///m/{i}.txt": f"Chapter {i}\n\nThe wheel number {i} turns.\n\nIts stone is grey." for i in range(6)}


@pytest.fixture
def build(store, cleaned, embedder):
    def built(texts, at=store):
        cut = at.build(PASSAGES, PassagesConfig(passage_tokens=16), cleaned(at, texts), embedder)
        return at.build(EMBED, EmbedConfig(), cut.handle, embedder)

    return built


def test_vectors_are_those_of_the_encoder_and_have_length_1(build, embedder):
    table, vectors = read_passages(build(TEXTS).handle.directory)
    model = load_encoder(embedder.directory)
    tokenizer = load_model_tokenizer(embedder.directory, model.cfg.vocab_size)
    np.testing.assert_allclose(vectors, embed(model, tokenizer, embedded_texts(table)), atol=1e-5)
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-5)
    assert vectors.dtype == np.float32 and len(vectors) == table.num_rows


def test_passage_that_repeats_another_is_dropped_and_counted_and_its_document_is_still_known(build):
    texts = {**TEXTS, "file:///m/copy.txt": TEXTS["file:///m/0.txt"]}
    built = build(texts)
    table, _ = read_passages(built.handle.directory)
    assert len(set(embedded_texts(table))) == table.num_rows
    assert built.counts.dropped["repeated"] and built.counts.is_conserved() and conservation(built.handle).passed
    dropped = read_table(built.handle.directory / DROPPED_FOLDER / "passages.parquet").to_pylist()
    assert {row["reason"] for row in dropped} == {"repeated"}
    known = {row["url"]: row["id"] for row in documents_in(built.handle.directory)}
    assert known["file:///m/copy.txt"] == known["file:///m/0.txt"] and set(known) == set(texts)


def test_changed_page_costs_its_own_passages_only_and_the_vectors_do_not_depend_on_what_was_built_before(
    build, tmp_path, store, monkeypatch
):
    first = build(TEXTS)
    assert first.record["measures"]["reused"] == 0
    asked, embedded = [], module._embedded
    monkeypatch.setattr(module, "_embedded", lambda texts, one: asked.extend(texts) or embedded(texts, one))
    changed = {**TEXTS, "file:///m/3.txt": TEXTS["file:///m/3.txt"] + "\n\nA new door was built."}
    second = build(changed)
    new = {*embedded_texts(read_passages(second.handle.directory)[0])} - {
        *embedded_texts(read_passages(first.handle.directory)[0])
    }
    assert set(asked) == new and 0 < len(new) <= 2
    n_rows = second.handle.rows
    assert second.record["measures"]["embedded"] == len(new)
    assert second.record["measures"]["reused"] == n_rows - len(new)
    other = type(store)(root=tmp_path / "other", engine=store.engine)
    assert build(changed, other).handle.digest == second.handle.digest


def test_killed_build_continues_with_the_vectors_that_it_has(build, store, monkeypatch):
    monkeypatch.setattr(module, "AT_ONCE", 2)
    embedded, asked = module._embedded, []

    def dies(texts, one):
        if len(asked) >= 4:
            raise KeyboardInterrupt
        asked.extend(texts)
        return embedded(texts, one)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(module, "_embedded", dies)
        build(TEXTS)
    assert len(asked) == 4
    again = []
    monkeypatch.setattr(module, "_embedded", lambda texts, one: again.extend(texts) or embedded(texts, one))
    built = build(TEXTS)
    assert not set(asked) & set(again) and len(asked) + len(again) == built.handle.rows
    assert not list(built.handle.directory.rglob(".done*"))
    shutil.rmtree(store.root / "embed")
    assert build(TEXTS).handle.digest == built.handle.digest


def test_no_passages_give_an_output_without_rows(build):
    built = build({})
    table, vectors = read_passages(built.handle.directory)
    assert built.handle.rows == table.num_rows == len(vectors) == 0
    assert json.loads((built.handle.directory / "record.json").read_text())["measures"]["embedded"] == 0
