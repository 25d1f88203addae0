"""The stage continue: what it starts from, what it reads, how it resumes, and what it refuses."""

import dataclasses
import os
import shutil
import signal

import pytest
import torch

from model.data.token_shards import read_description, read_token_shard
from model.network.encoder import Encoder
from model.network.registry import describe, load_decoder, save_model
from model.network.shape import EncoderConfig
from model.training.curve import read_curve
from model.training.files import read_tensors
from pipeline.corpus.tokens.tokenize import TOKENIZE, TokenizeConfig, TokenizeRecipe
from pipeline.corpus.tokens.tokenizer_files import tokenizer_in
from pipeline.provenance.exposure import models_of
from pipeline.provenance.training_steps import content_of_steps
from pipeline.store.chain import side_inputs
from pipeline.store.errors import Terminated
from pipeline.store.records import Checkpoint, Shards, TokenizerFile
from pipeline.store.store import Outcome, Silent, Stage, Store, fingerprint_of
from pipeline.tasks.kind import kind_of
from pipeline.training.continuing import CONTINUE, ContinueConfig, continue_recipe

TINY = ContinueConfig(
    domain=("manual", "guide"), general=("wiki",), n_steps=12, rows=4, seq_len=8, lora_rank=2, checkpoint_every=5
)
FULL = dataclasses.replace(TINY, tuning="full", adamw_lr=0.01)
CONFIGS = pytest.mark.parametrize("cfg", [TINY, FULL], ids=["lora", "full"])


class Stopping(Silent):
    def metrics(self, step, values) -> None:
        if step == 7:
            os.kill(os.getpid(), signal.SIGTERM)


def quiet(text):
    """Nobody listens."""


def build(store: Store, cfg: ContinueConfig, base, tokens):
    return store.build(CONTINUE, continue_recipe(cfg), base, tokens)


@CONFIGS
def test_continue_starts_from_the_base_and_learns(store, base, mixed_tokens, cfg):
    built = build(store, cfg, base, mixed_tokens)
    start, decoder = load_decoder(base.directory), load_decoder(built.handle.directory)
    assert decoder.cfg == start.cfg
    before, after = dict(start.named_parameters()), dict(decoder.named_parameters())
    moved = {name for name, weight in after.items() if not torch.equal(weight, before[name])}
    layers = {name for name in after if ".layers." in f".{name}" and after[name].ndim == 2}
    assert moved == layers if cfg.tuning == "lora" else moved == set(after)
    first = next(line["loss"] for line in read_curve(built.handle.directory) if "loss" in line)
    assert built.record["measures"]["training_loss"] < first
    assert (built.handle.directory / "adapter").exists() == (cfg.tuning == "lora")
    assert tokenizer_in(built.handle).digest == tokenizer_in(base).digest


@CONFIGS
def test_continue_killed_and_run_again_ends_with_the_same_weights(tmp_path, store, base, mixed_tokens, cfg):
    whole = build(store, cfg, base, mixed_tokens).handle
    root = tmp_path / "other"
    with pytest.raises(Terminated):
        build(Store(root=root, observer=Stopping()), cfg, base, mixed_tokens)
    resumed = build(Store(root=root), cfg, base, mixed_tokens).handle
    assert resumed.fingerprint == whole.fingerprint and resumed.digest == whole.digest
    weights = [read_tensors(one.directory / "model.safetensors") for one in (whole, resumed)]
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0])


def test_continue_reads_the_share_of_general_text_that_was_asked_for(store, base, mixed_tokens):
    tokens, cfg = in_store(store, mixed_tokens), dataclasses.replace(TINY, domain=("manual",), general_share=0.25)
    model = build(store, cfg, base, tokens).handle
    shard = read_token_shard(tokens.directory / "train" / "00000.arrow")
    assert shard.sources is not None
    source = dict(zip(shard.document_ids.to_pylist(), shard.sources.to_pylist(), strict=True))
    n_tokens = {"manual": 0, "wiki": 0}
    for document in content_of_steps(store.root, model.directory, 1, 12, quiet, kind_of).documents:
        n_tokens[source[document.document_id]] += document.n_tokens
    assert n_tokens == {"manual": 36 * 8, "wiki": 12 * 8}


def test_continue_is_found_by_the_documents_that_it_read(store, base, mixed_tokens):
    tokens = in_store(store, mixed_tokens)
    model = build(store, dataclasses.replace(TINY, domain=("manual",)), base, tokens).handle
    read = {name for step in range(1, 13) for name in documents_of_step(store, model, step)}
    assert len(read) > 5 and not any(int(name.removeprefix("train-")) % 3 == 1 for name in read)  # no guide
    for name in (*sorted(read)[:4], "train-1"):
        (exposure,) = models_of(store.root, document_ids=[name])
        (seen,) = exposure.documents
        assert exposure.fingerprint == model.fingerprint
        assert seen.steps.tolist() == [k for k in range(1, 13) if name in documents_of_step(store, model, k)]


def documents_of_step(store: Store, model: Checkpoint, step: int) -> set[str]:
    content = content_of_steps(store.root, model.directory, step, step, quiet, kind_of)
    return {one.document_id for one in content.documents}


def in_store(store: Store, tokens: Shards) -> Shards:
    """The same shards as an output of the store, where provenance looks for them."""

    def copy(cfg, inputs, work) -> Outcome:
        shutil.copytree(tokens.directory, work.directory, dirs_exist_ok=True)
        return Outcome(rows=tokens.rows)

    return store.build(Stage(name="tokenize", version=1, function=copy, handle=Shards), {}).handle


def test_tokens_of_a_base_are_those_of_its_own_tokenizer(store, base, split_corpus, byte_tokenizer):
    """The tokenizer of a model of ours gives the shards of the tokenizer that it was trained with."""
    row = {"page_id": "p", "text": "some text", "source": "s", "split": "train"}
    corpus = split_corpus([row])
    assert tokenizer_in(base).digest == byte_tokenizer.digest
    recipe = TokenizeRecipe(config=TokenizeConfig())
    fingerprints = [fingerprint_of(TOKENIZE, recipe, (corpus, one)) for one in (tokenizer_in(base), byte_tokenizer)]
    assert fingerprints[0] == fingerprints[1]
    tokens = store.build(TOKENIZE, recipe, corpus, tokenizer_in(base)).handle
    assert read_description(tokens.directory)["tokenizer"] == byte_tokenizer.digest


def test_a_base_is_no_input_whose_rows_tokenize_must_account_for():
    assert {"tokenizer", "base", "pretrain", "continue"} <= side_inputs("tokenize")


def test_continue_with_shards_of_another_tokenizer_is_refused(store, base, mixed_tokens):
    description = base.directory / "tokenizer" / "gristmill_tokenizer.json"
    description.write_text(f"{description.read_text()} ")
    with pytest.raises(ValueError, match="was made with the tokenizer"):
        build(store, TINY, base, mixed_tokens)


def test_continue_of_an_encoder_without_a_head_is_refused(store, base, mixed_tokens):
    encoder = EncoderConfig(
        vocab_size=257, n_layers=1, n_heads=2, n_kv_heads=2, d_model=16, d_head=8, d_ff=32, max_seq_len=16
    )
    save_model(base.directory, Encoder(encoder), describe(encoder, kind="encoder"))
    with pytest.raises(ValueError, match="a model of kind encoder has no head that predicts tokens"):
        build(store, TINY, base, mixed_tokens)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"general": ("wiki",), "general_share": 0.0}, "do not fit together"),
        ({"domain": ("wiki",), "general": ("wiki",)}, "'wiki' is in domain and in general"),
        ({"general_share": 1.0}, "general_share is 1.0, expected a number"),
        ({"rows": 4, "micro_batch": 3}, "rows=4 is not a multiple of micro_batch=3"),
        ({"lora_rank": 0}, "lora_rank is 0"),
    ],
)
def test_continue_setting_that_breaks_a_rule_is_named(values, message):
    with pytest.raises(ValueError, match=message):
        ContinueConfig(**values)


def test_continue_longer_rows_than_the_context_are_refused(store, base, mixed_tokens):
    with pytest.raises(ValueError, match="seq_len=32 is longer than the context, max_seq_len=16"):
        build(store, dataclasses.replace(TINY, seq_len=32), base, mixed_tokens)


def test_continue_source_that_no_document_is_from_is_refused(store, base, mixed_tokens):
    with pytest.raises(ValueError, match="domain: no document is from the source 'manuals'; there are guide, manual"):
        build(store, dataclasses.replace(TINY, domain=("manuals",)), base, mixed_tokens)


def test_continue_fingerprint_ignores_what_changes_no_weight(base, mixed_tokens):
    same = dataclasses.replace(TINY, devices=2, micro_batch=2, checkpoint_every=1, lora_targets=())
    prints = {fingerprint_of(CONTINUE, continue_recipe(cfg), (base, mixed_tokens)) for cfg in (TINY, same)}
    assert len(prints) == 1
    other = dataclasses.replace(TINY, general_share=0.3)
    assert fingerprint_of(CONTINUE, continue_recipe(other), (base, mixed_tokens)) not in prints


def test_tokenizer_handle_is_named_after_its_model(base):
    assert isinstance(tokenizer_in(base), TokenizerFile) and tokenizer_in(base).fingerprint == base.fingerprint
