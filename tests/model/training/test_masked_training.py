"""Masked-token training: its loss against transformers', and the laws of training for it."""

import dataclasses
import json
import math

import numpy as np
import pytest
import torch
from transformers import BertForMaskedLM

from model.cli import main
from model.data.batches import TokenBatches
from model.data.mask_token import write_with_mask
from model.data.masking import MaskedBatches, mask_vocabulary
from model.data.token_shards import DESCRIPTION, read_token_shards, write_token_shard
from model.data.tokenizer import load_tokenizer
from model.hf.files import write_folder
from model.hf.tokenizer_import import import_tokenizer
from model.network.encoder import new_masked_lm
from model.network.registry import load_model
from model.network.shape import EncoderConfig, config_for
from model.training.loss import masked_token_loss
from model.training.presets import ENCODER_PRESETS, changed, preset_of
from model.training.pretraining import Pretraining, job_of, pretrain, training_batches, validation
from model.training.step import accumulate_gradients, new_state
from tests.model.hf.tokenizers_of_others import save

TINY = {"n_layers": 1, "d_model": 16, "n_heads": 2, "d_ff": 32, "seq_len": 16, "rows": 6, "n_steps": 12}
FAMILIES = ("bert", "roberta", "modernbert")


class Silent:
    def metrics(self, step, values): ...
    def checkpoint(self, path, step, values): ...


class KilledError(Exception):
    pass


class KilledAt(Silent):
    def __init__(self, step: int) -> None:
        self.step = step

    def metrics(self, step, values):
        if step == self.step:
            raise KilledError


def network_of(plan: Pretraining) -> EncoderConfig:
    assert isinstance(plan.network, EncoderConfig)
    return plan.network


def plan_of(corpus, out, family="bert", **changes) -> Pretraining:
    settings = {**TINY, "checkpoint_every": 5, "validate_every": 6, **changes}
    preset = changed(preset_of("demo", family), settings, family)
    n_tokens = load_tokenizer(corpus / "tokenizer").vocab_size
    return Pretraining(
        shards=corpus / "shards", out=out, network=config_for(preset.shape, n_tokens), train=preset.train,
        made_from={}, tokenizer=corpus / "tokenizer",
    )  # fmt: skip


def weights_in(folder) -> bytes:
    return (folder / "model.safetensors").read_bytes()


def scaled(model):
    """Weights that make every part count: larger ones, norms not 1, biases not 0."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for weight in model.parameters():
            weight.add_(torch.empty(weight.shape).normal_(std=0.2, generator=generator))
    return model.eval()


def test_loss_and_gradient_equal_those_of_transformers_on_the_same_masked_batch(corpus, tmp_path):
    plan = plan_of(corpus, tmp_path, packing="documents", rows=4)
    ours = scaled(new_masked_lm(network_of(plan), seed=0))
    write_folder(tmp_path / "theirs", ours)
    theirs = BertForMaskedLM.from_pretrained(tmp_path / "theirs", attn_implementation="eager").eval()
    batch = training_batches(plan).batch(0)
    documents_BT = batch["documents_BT"]
    sees_B1TS = (documents_BT.unsqueeze(2) == documents_BT.unsqueeze(1)).unsqueeze(1)
    expected = theirs(
        input_ids=batch["ids_BT"],
        attention_mask=torch.where(sees_B1TS, 0.0, torch.finfo(torch.float32).min),
        position_ids=batch["positions_BT"],
        labels=batch["targets_BT"],
    ).loss
    loss_sum, n_targets = masked_token_loss(ours, batch)
    assert n_targets == (batch["targets_BT"] >= 0).sum() and n_targets > 5
    assert (loss_sum / n_targets).item() == pytest.approx(expected.item(), abs=1e-4)
    (loss_sum / n_targets).backward()
    expected.backward()
    mine, others = dict(ours.named_parameters()), dict(theirs.named_parameters())
    for name, other in (
        ("model.embed_tokens.weight", "bert.embeddings.word_embeddings.weight"),
        ("model.layers.0.self_attn.q_proj.weight", "bert.encoder.layer.0.attention.self.query.weight"),
        ("head.dense.weight", "cls.predictions.transform.dense.weight"),
        ("lm_head.bias", "cls.predictions.bias"),
    ):
        torch.testing.assert_close(mine[name].grad, others[other].grad, atol=1e-4, rtol=1e-3)


@pytest.mark.parametrize("family", FAMILIES)
def test_killed_and_resumed_is_uninterrupted_to_the_bit(corpus, tmp_path, family):
    whole, killed = (plan_of(corpus, tmp_path / name, family) for name in ("whole", "killed"))
    pretrain(whole, Silent())
    for step in (4, 8, 11):  # before, between and after checkpoints
        with pytest.raises(KilledError):
            pretrain(killed, KilledAt(step))
    pretrain(killed, Silent())
    assert weights_in(killed.out) == weights_in(whole.out)
    curves = [(plan.out / "curve.jsonl").read_text().splitlines() for plan in (whole, killed)]
    losses = [[json.loads(line).get("loss", json.loads(line)) for line in curve] for curve in curves]
    assert losses[0] == losses[1] and len(losses[0]) == 14  # 12 steps and 2 validations


def test_micro_batch_changes_no_gradient(corpus, tmp_path):
    plan = plan_of(corpus, tmp_path, mask_whole_words=True)
    batch, found = training_batches(plan).batch(0), []
    for micro_batch in (6, 3, 1):
        state = new_state(scaled(new_masked_lm(network_of(plan), seed=0)), plan.train)
        cfg = dataclasses.replace(plan.train, micro_batch=micro_batch)
        loss, n_targets = accumulate_gradients(state, batch, cfg, masked_token_loss)
        found.append((loss.item(), int(n_targets), [w.grad for w in state.model.parameters() if w.grad is not None]))
    for loss, n_targets, gradients in found[1:]:
        assert loss == pytest.approx(found[0][0], rel=1e-5) and n_targets == found[0][1]
        torch.testing.assert_close(gradients, found[0][2], rtol=1e-4, atol=1e-4)


@pytest.mark.slow
def test_two_processes_make_the_model_of_one(corpus, tmp_path):
    size = [part for name, value in TINY.items() for part in ("--set", f"{name}={value}")]
    for n in (1, 2):
        train = ["train", str(corpus / "shards"), str(tmp_path / str(n)), "--family", "roberta", "--devices", str(n)]
        assert main([*train, *size, "--set", "micro_batch=3", "--set", "n_threads=1"]) == 0
    one, two = (load_model(tmp_path / str(n), "cpu", "masked_lm")[0].state_dict() for n in (1, 2))
    for name, weight in one.items():
        torch.testing.assert_close(two[name], weight, atol=2e-3, rtol=1e-2)


def test_masks_of_validation_stay_and_are_not_those_of_training(corpus, tmp_path):
    plan = plan_of(corpus, tmp_path)
    model, validate = new_masked_lm(network_of(plan), seed=0).eval(), validation(plan)
    assert validate is not None
    assert validate(model) == validate(model)
    assert validate(model)["validation_masked_perplexity"] == math.exp(validate(model)["validation_loss"])
    shards, seeds = read_token_shards(plan.shards, "validation"), []
    real = MaskedBatches.__init__

    def noted(self, *args, seed, **named):
        seeds.append(seed)
        real(self, *args, seed=seed, **named)

    MaskedBatches.__init__ = noted
    try:
        validation(plan)
        training_batches(plan)
    finally:
        MaskedBatches.__init__ = real
    batches = TokenBatches(shards, rows=4, seq_len=16, seed=0, document_mask=True)
    vocabulary = mask_vocabulary(plan.shards, plan.network.vocab_size)
    of_validation, of_training = (
        MaskedBatches(batches, vocabulary, fraction=0.15, seed=seed).batch(0)["supervised_BP"] for seed in seeds
    )
    assert not torch.equal(of_validation, of_training)


def test_new_model_begins_at_the_loss_of_a_uniform_guess(corpus, tmp_path):
    for family in FAMILIES:
        plan = plan_of(corpus, tmp_path, family)
        with torch.no_grad():
            loss_sum, n_targets = masked_token_loss(job_of(plan).model, training_batches(plan).batch(0))
        assert float(loss_sum / n_targets) == pytest.approx(math.log(plan.network.vocab_size), abs=0.1)


def test_copy_task_is_learned(tmp_path):
    """In documents that repeat themselves a masked token occurs elsewhere in the row; frequencies do not help."""
    rng = np.random.default_rng(0)
    for split, n in (("train", 600), ("validation", 40)):
        texts = []
        for _ in range(n):
            half = rng.integers(0, 20, 7)
            texts.append(np.concatenate([[20], half, half]))
        (tmp_path / "shards" / split).mkdir(parents=True)
        path = tmp_path / "shards" / split / "0.arrow"
        write_token_shard(path, [str(i) for i in range(n)], [15] * n, texts, 21)
    about = {"vocab_size": 21, "end_of_text": 20, "tokenizer": "x"}
    (tmp_path / "shards" / DESCRIPTION).write_text(json.dumps(about))
    settings = {"n_layers": 1, "d_model": 32, "n_heads": 2, "d_ff": 64, "seq_len": 15, "rows": 16, "n_steps": 250}
    preset = changed(preset_of("demo", "bert"), {**settings, "validate_every": 250, "checkpoint_every": 250}, "bert")
    plan = Pretraining(
        shards=tmp_path / "shards", out=tmp_path / "out", network=config_for(preset.shape, 21), train=preset.train,
        made_from={},
    )  # fmt: skip
    pretrain(plan, Silent())
    validate = validation(plan)
    assert validate is not None
    assert validate(load_model(plan.out)[0])["validation_loss"] < 0.4 * math.log(20)  # a frequency costs ln 20


def test_pretraining_travels_as_json(corpus, tmp_path):
    for family in FAMILIES:
        plan = plan_of(corpus, tmp_path, family)
        assert Pretraining.from_json(plan.to_json()) == plan


def test_encoder_on_shards_of_another_vocabulary_is_refused(corpus, tmp_path):
    plan = plan_of(corpus, tmp_path)
    with pytest.raises(ValueError, match="no mask token"):
        dataclasses.replace(plan, network=dataclasses.replace(plan.network, vocab_size=500))


def test_preset_that_a_family_does_not_have_is_refused_with_those_that_it_has(corpus, tmp_path, capsys):
    assert main(["train", str(corpus / "shards"), str(tmp_path), "--family", "bert", "--preset", "gpt2_124m"]) == 1
    assert f"expected one of {', '.join(ENCODER_PRESETS)}" in capsys.readouterr().err
    assert main(["train", str(corpus / "shards"), str(tmp_path), "--preset", "base"]) == 1
    assert "preset='base' with family='qwen3'" in capsys.readouterr().err


@pytest.mark.parametrize("name", ["bert", "smollm"])
def test_encoder_takes_the_mask_token_of_its_tokenizer_or_is_refused_before_it_is_trained(name, tmp_path, capsys):
    """Of tokenizers of others: that of BERT has a mask token, and no vocabulary of others gets one more."""
    tokenizer = import_tokenizer(save(name, tmp_path / "source"), tmp_path / "tokenizer", 1200)
    texts = tokenizer.encode_batch(["the mill in the valley"] * 20)
    documents = [np.array([tokenizer.end_of_text, *ids]) for ids in texts]
    for split in ("train", "validation"):
        (tmp_path / "shards" / split).mkdir(parents=True)
        path = tmp_path / "shards" / split / "0.arrow"
        write_token_shard(path, [str(i) for i in range(20)], [22] * 20, documents, 1200)
    about = {"vocab_size": 1200, "end_of_text": tokenizer.end_of_text, "tokenizer": "x"}
    (tmp_path / "shards" / DESCRIPTION).write_text(json.dumps(about))
    settings = [part for key, value in TINY.items() for part in ("--set", f"{key}={value}")]
    call = ["train", str(tmp_path / "shards"), str(tmp_path / "out"), "--family", "bert", *settings]
    code = main([*call, "--tokenizer", str(tmp_path / "tokenizer")])
    if name == "bert":
        assert code == 0
        assert main(["embed", str(tmp_path / "out"), "the mill"]) == 0  # which compares the two vocabularies
        return
    assert code == 1 and "has no mask token, so an encoder cannot be trained" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_tokenizer_with_a_mask_has_the_same_ids_and_one_more(corpus, tmp_path):
    write_with_mask(corpus / "tokenizer", tmp_path / "masked")
    write_with_mask(tmp_path / "masked", tmp_path / "again")
    plain, masked = (load_tokenizer(folder) for folder in (corpus / "tokenizer", tmp_path / "masked"))
    assert masked.special == {**plain.special, "mask": plain.vocab_size} and masked.vocab_size == plain.vocab_size + 1
    text = "kalo mitu <|mask|> <|endoftext|> grabel"
    assert masked.encode(text) == plain.encode(text)  # a mask token that is spelled out is text
    assert load_tokenizer(tmp_path / "again").special == masked.special
