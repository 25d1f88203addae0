"""What was in a training step, against counting token by token in the batches that training reads."""

import shutil
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from model.data.batch_layout import IGNORE_INDEX
from model.data.batches import TokenBatches, token_batches
from model.data.token_shards import read_token_shards, write_token_shard
from model.training.config import TrainConfig
from pipeline.provenance.exposure import models_of, unexplained_models
from pipeline.provenance.training_steps import content_of_steps
from pipeline.store.records import SPLIT_CORPUS, Checkpoint, Handle, Shards
from pipeline.store.shards import text_digest, write_rows
from pipeline.store.store import Outcome, Stage
from pipeline.tasks.kind import kind_of

LENGTHS = {"train": [[5, 1, 30], [17], [2, 2, 9, 40, 3]], "validation": [[12, 7]], "test": []}
TRAIN = {"rows": 3, "seq_len": 10, "seed": 5, "n_steps": 9}  # 2.7 epochs


def quiet(text):
    """Nobody listens."""


def write_corpus(cfg, inputs, work):
    rows = []
    for i in range(12):
        row = {field.name: None if field.nullable else "" for field in SPLIT_CORPUS}
        row |= {f.name: 0 for f in SPLIT_CORPUS if str(f.type) in ("double", "int32", "int64")} | {"pii": []}
        row |= {"id": document_id(i), "page_id": text_digest("page", str(i)), "url": f"https://mill.example/{i}.html"}
        rows.append(
            row | {"source": "ab"[i % 2], "licence": [None, "MIT", "BSD"][i % 3], "text": "x", "split": "train"}
        )
    for part in range(2):
        write_rows(work.directory / f"x-{part}.parquet", rows[part::2], SPLIT_CORPUS)
    return Outcome(rows=12)


def document_id(i: int) -> str:
    return text_digest("text", str(i))


def write_tokens(cfg, inputs, work):
    """Document 3 stands in the train stream twice, and document 2 in a held-out file too; no token stands twice."""
    names, tokens = iter([0, 1, 2, 3, 4, 5, 6, 3, 7, 2, 8]), iter(range(300))
    for side, files in LENGTHS.items():
        for number, lengths in enumerate(files):
            path = work.directory / side / f"{number:05d}.arrow"
            path.parent.mkdir(exist_ok=True)
            ids = [document_id(next(names)) for _ in lengths]
            write_token_shard(
                path, ids, lengths, [np.array([next(tokens) for _ in range(n)]) for n in lengths], vocab_size=300
            )
    return Outcome(rows=11)


def write_weights(cfg, inputs, work):
    (work.directory / "model.safetensors").write_bytes(b"weights")
    return Outcome(rows=cfg.get("train", cfg).get("n_steps", 7))


def stage(name, function, handle: type[Handle] = Shards) -> Stage:
    return Stage(name=name, version=1, function=function, handle=handle)


@pytest.fixture(params=[{}, {"packing": "documents"}, {"batch_warmup_fraction": 0.5}], ids=str)
def made(store, request):
    """A record that names no order was written when there was only one."""
    train = TRAIN | request.param
    corpus = store.build(stage("split", write_corpus), {}).handle
    tokens = store.build(stage("tokenize", write_tokens), {}, corpus).handle
    model = store.build(stage("pretrain", write_weights, Checkpoint), {"train": train}, tokens).handle
    tuned = store.build(stage("finetune", write_weights, Checkpoint), {"epochs": 1}, model).handle
    return {"corpus": corpus, "tokens": tokens, "model": model, "tuned": tuned, "train": train}


def batches_of(made) -> TokenBatches:
    shards = read_token_shards(made["tokens"].directory, "train")
    return token_batches(shards, TrainConfig(**made["train"]))


def owners(batches) -> list[str]:
    """Of every token of the stream, which are 0, 1 ..., the document that it belongs to."""
    return [
        document
        for shard in batches.stream.shards
        for document, start, end in zip(
            shard.document_ids.to_pylist(), shard.offsets, shard.offsets[1:], strict=False
        )
        for _ in range(start, end)
    ]


@pytest.mark.parametrize(("first", "last"), [(1, 1), (4, 4), (9, 9), (1, 9), (3, 5)])
def test_content_of_steps_is_what_counting_token_by_token_gives(store, made, first, last):
    batches = batches_of(made)
    owner, expected = owners(batches), Counter()
    for step in range(first, last + 1):
        batch = batches.batch(step - 1)
        is_cell = batch["targets_BT"] != IGNORE_INDEX
        reads = [owner[i] for i in batch["ids_BT"][is_cell].tolist()]
        if made["train"].get("packing") == "documents":  # the end-of-text behind a document counts as its own
            expected.update(reads)
        else:
            expected.update(dict.fromkeys(reads, 0))  # read, though perhaps not predicted here
            expected.update(owner[i] for i in batch["targets_BT"].flatten().tolist())
    content = content_of_steps(store.root, made["model"].directory, first, last, quiet, kind_of)
    assert {one.document_id: one.n_tokens for one in content.documents} == expected
    assert content.n_tokens == sum(expected.values()) <= (last - first + 1) * 30
    if first == last:
        assert [one.document_id for one in content.documents] == batches.documents_of_batch(first - 1)


def test_content_of_steps_names_pages_urls_sources_and_licences(store, made):
    content = content_of_steps(store.root, made["model"].directory, 1, 9, quiet, kind_of)
    number = {document_id(i): i for i in range(12)}
    for one in content.documents:
        i = number[one.document_id]
        assert one.page_id == text_digest("page", str(i))
        assert (one.url, one.source, one.licence) == (
            f"https://mill.example/{i}.html",
            "ab"[i % 2],
            [None, "MIT", "BSD"][i % 3],
        )
    sums = content.sums("licence")
    assert {value for value, _, _ in sums} == {"not known", "MIT", "BSD"}
    assert sum(tokens for _, _, tokens in sums) == content.n_tokens
    assert [tokens for _, _, tokens in sums] == sorted((tokens for _, _, tokens in sums), reverse=True)


@pytest.mark.parametrize(("first", "last"), [(0, 1), (10, 10), (5, 4), (1, 10)])
def test_content_of_steps_that_were_never_trained_is_refused(store, made, first, last):
    with pytest.raises(ValueError, match="steps go from 1 to 9"):
        content_of_steps(store.root, made["model"].directory, first, last, quiet, kind_of)


def test_content_of_steps_of_data_is_refused(store, made):
    with pytest.raises(ValueError, match="an output of `tokenize`, expected a trained model"):
        content_of_steps(store.root, made["tokens"].directory, 1, 1, quiet, kind_of)


def test_content_of_steps_after_the_corpus_was_removed_has_ids_and_says_so(store, made):
    shutil.rmtree(made["corpus"].directory)
    content = content_of_steps(store.root, made["model"].directory, 2, 2, quiet, kind_of)
    assert content.n_tokens and {one.url for one in content.documents} == {None}
    assert "was removed" in content.note


def test_content_of_steps_after_the_tokens_were_removed_is_refused(store, made):
    shutil.rmtree(made["tokens"].directory)
    with pytest.raises(ValueError, match="were removed"):
        content_of_steps(store.root, made["model"].directory, 2, 2, quiet, kind_of)


def steps_by_reading(made, document: str) -> list[int]:
    batches = batches_of(made)
    return [step for step in range(1, 10) if document in batches.documents_of_batch(step - 1)]


def test_models_of_gives_every_place_and_the_steps_that_reading_all_batches_finds(store, made):
    for i in range(12):
        exposures = models_of(store.root, page_ids=[text_digest("page", str(i))])
        if i > 8:
            assert exposures == []
            continue
        assert [one.stage for one in exposures] == ["finetune", "pretrain"]
        assert exposures[0].base == made["model"].fingerprint and exposures[1].base is None
        for exposure in exposures:
            places = {(seen.where, seen.row) for seen in exposure.documents}
            assert len(places) == {2: 2, 3: 2}.get(i, 1)
            steps = np.unique(np.concatenate([seen.steps for seen in exposure.documents]))
            assert steps.tolist() == steps_by_reading(made, document_id(i))
            assert all(not len(seen.steps) for seen in exposure.documents if seen.side != "train")


def test_models_of_a_model_that_was_trained_further_names_its_own_training_and_that_of_its_base(store, made):
    """What the base had read was not named any more."""
    inputs = made["model"], made["tokens"]
    further = store.build(stage("continue", write_weights, Checkpoint), {"train": made["train"]}, *inputs).handle
    tuned = store.build(stage("finetune", write_weights, Checkpoint), {"epochs": 2}, further).handle
    found = [one for one in models_of(store.root, document_ids=[document_id(0)]) if one.was_trained_on]
    bases = {name: {one.base for one in found if one.directory == name.directory} for name in (further, tuned)}
    assert bases == {
        further: {None, made["model"].fingerprint},
        tuned: {further.fingerprint, made["model"].fingerprint},
    }


def test_models_of_document_ids_is_models_of_their_pages(store, made):
    by_page = models_of(store.root, page_ids=[text_digest("page", "3"), text_digest("page", "4")])
    by_id = models_of(store.root, document_ids=[document_id(4), document_id(3)])
    assert [[(s.page_id, s.where, s.row) for s in one.documents] for one in by_page] == [
        [(s.page_id, s.where, s.row) for s in one.documents] for one in by_id
    ]


def test_models_of_after_the_corpus_was_removed_still_finds_document_ids(store, made):
    shutil.rmtree(made["corpus"].directory)
    (_, exposure) = models_of(store.root, document_ids=[document_id(4)])
    assert [seen.page_id for seen in exposure.documents] == [None]
    assert exposure.documents[0].steps.tolist() == steps_by_reading(made, document_id(4))


def test_unexplained_models_are_those_whose_shards_or_base_are_gone(store, made):
    assert unexplained_models(store.root) == []
    shutil.rmtree(made["tokens"].directory)
    reasons = dict(unexplained_models(store.root))
    assert set(reasons) == {made["model"].directory, made["tuned"].directory}
    shutil.rmtree(made["model"].directory)
    ((folder, reason),) = unexplained_models(store.root)
    assert folder == made["tuned"].directory and "base checkpoint" in reason
    assert models_of(store.root, document_ids=[document_id(4)]) == []


def test_models_of_does_not_name_a_baseline_from_random_weights(store, made):
    """It takes shape and tokenizer from the base, and none of what the base learned."""
    settings = {"epochs": 1, "initialisation": "random"}
    random = store.build(stage("finetune", write_weights, Checkpoint), settings, made["model"]).handle
    further = store.build(stage("finetune", write_weights, Checkpoint), {"epochs": 2}, random).handle
    named = {one.directory for one in models_of(store.root, document_ids=[document_id(4)])}
    assert named == {made["model"].directory, made["tuned"].directory}
    assert unexplained_models(store.root) == []
    assert further.directory not in named


def test_models_of_skips_a_checkpoint_that_was_never_finished(store, made):
    (Path(made["model"].directory) / "record.json").unlink()
    assert models_of(store.root, document_ids=[document_id(4)]) == []
