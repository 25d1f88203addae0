"""Heads of tasks against transformers in float32, read and written, over every family, with padding and token types.

Two tensors are equal here when the largest difference is at most 1e-5 of the largest magnitude.
"""

import json

import pytest
import torch
from transformers import (
    AutoConfig,
    AutoModelForQuestionAnswering,
    AutoModelForSequenceClassification,
    AutoModelForTokenClassification,
)

from model.hf.config import config_to_hf
from model.hf.files import read_model, write_folder
from model.hf.importing import import_model
from model.network.heads import SequenceClassifier, SpanClassifier, TokenClassifier
from model.network.registry import KINDS, load_model
from tests.model.hf.conftest import DECODERS
from tests.model.hf.encoders import ENCODERS
from tests.model.hf.test_parity import assert_equal

FAMILIES = {
    **{name: ENCODERS[name] for name in ("bert", "bert-three-types", "roberta", "modernbert", "modernbert-biases")},
    **{name: DECODERS[name] for name in ("qwen3", "qwen3-tied", "llama", "gpt2", "qwen2", "mistral", "arcee")},
}
CLASSES = {"token_classifier": AutoModelForTokenClassification, "span_classifier": AutoModelForQuestionAnswering}
LENGTHS_B = torch.tensor([30, 11, 3])
IS_REAL_BT = torch.arange(30) < LENGTHS_B.unsqueeze(1)
LABELS = ("O", "B-LOC", "I-LOC")


def their_config(cfg, **changes):
    written = config_to_hf(cfg) | changes
    return AutoConfig.for_model(written.pop("model_type"), **written)


def batch_of(cfg):
    pad_id = 1 if getattr(cfg, "position_offset", 0) else 0
    ids_BT = torch.randint(5, 97, (3, 30), generator=torch.Generator().manual_seed(7)).masked_fill(
        ~IS_REAL_BT, pad_id
    )
    n_types = getattr(cfg, "n_token_types", 0)
    types_BT = (torch.arange(30) > 6).long().expand(3, 30) if n_types > 1 else None
    return ids_BT, types_BT


def check_equal(ours, theirs, kind: str) -> None:
    ids_BT, types_BT = batch_of(ours.cfg)
    of_types = {} if types_BT is None else {"token_type_ids": types_BT}
    out = theirs(ids_BT, attention_mask=IS_REAL_BT.long(), **of_types)
    expected = out.logits if kind == "token_classifier" else torch.stack([out.start_logits, out.end_logits], dim=2)
    assert_equal(ours(ids_BT, LENGTHS_B, types_BT)[IS_REAL_BT], expected[IS_REAL_BT])


@torch.no_grad()
@pytest.mark.parametrize("kind", CLASSES)
@pytest.mark.parametrize("name", FAMILIES)
def test_head_read_from_transformers_gives_its_logits(name, kind, large_weights, tmp_path):
    cfg = FAMILIES[name]
    named = {"id2label": dict(enumerate(LABELS))} if kind == "token_classifier" else {}
    theirs = CLASSES[kind].from_config(their_config(cfg, **named), dtype=torch.float32)
    large_weights(theirs, seed=1).save_pretrained(tmp_path)
    ours, labels = read_model(tmp_path)
    assert isinstance(ours, TokenClassifier) and isinstance(ours, SpanClassifier) == (kind == "span_classifier")
    assert (ours.cfg, labels) == (cfg, LABELS if named else None)
    check_equal(ours, theirs, kind)


@torch.no_grad()
@pytest.mark.parametrize("kind", CLASSES)
@pytest.mark.parametrize("name", FAMILIES)
def test_head_read_by_transformers_gives_our_logits(name, kind, large_weights, tmp_path):
    labels = LABELS if kind == "token_classifier" else None
    ours = large_weights(KINDS[kind].build(FAMILIES[name], labels or ()), seed=2)
    write_folder(tmp_path, ours, labels=labels)
    theirs, report = CLASSES[kind].from_pretrained(tmp_path, dtype=torch.float32, output_loading_info=True)
    assert not any(report[name] for name in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    assert labels is None or tuple(theirs.config.id2label.values()) == labels
    check_equal(ours, theirs.eval(), kind)


@torch.no_grad()
@pytest.mark.parametrize("name", ["bert", "bert-three-types", "roberta", "modernbert", "qwen3", "gpt2"])
def test_pairs_of_texts_and_several_labels_are_as_in_transformers(name, large_weights, tmp_path):
    cfg = FAMILIES[name]
    ours = large_weights(SequenceClassifier(cfg, 3), seed=3)
    write_folder(tmp_path / "ours", ours, labels=LABELS, problem="multi_label")
    theirs = AutoModelForSequenceClassification.from_pretrained(tmp_path / "ours", dtype=torch.float32).eval()
    assert theirs.config.problem_type == "multi_label_classification"
    theirs.config.pad_token_id = 0  # a decoder's last real token is where its padding ends
    ids_BT, types_BT = batch_of(cfg)
    of_types = {} if types_BT is None else {"token_type_ids": types_BT}
    assert_equal(
        ours(ids_BT, LENGTHS_B, types_BT), theirs(ids_BT, attention_mask=IS_REAL_BT.long(), **of_types).logits
    )


@pytest.mark.parametrize("kind", CLASSES)
def test_an_imported_model_of_a_task_is_ours(kind, large_weights, tmp_path):
    labels = LABELS if kind == "token_classifier" else None
    model = large_weights(KINDS[kind].build(ENCODERS["bert"], labels or ()), seed=2)
    write_folder(tmp_path / "theirs", model, labels=labels)
    (tmp_path / "theirs" / "vocab.txt").write_text("[PAD]\n[UNK]\n[CLS]\n[SEP]\n[MASK]\na\nb\n##a\n")
    assert import_model(tmp_path / "theirs", tmp_path / "ours").kind == kind
    back, found = load_model(tmp_path / "ours", "cpu", kind)
    assert found == labels
    assert all(torch.equal(a, b) for a, b in zip(back.parameters(), model.parameters(), strict=True))


def test_an_imported_classifier_of_several_labels_says_so(large_weights, tmp_path):
    model = large_weights(SequenceClassifier(ENCODERS["bert"], 3), seed=2)
    write_folder(tmp_path / "theirs", model, labels=LABELS, problem="multi_label")
    (tmp_path / "theirs" / "vocab.txt").write_text("[PAD]\n[UNK]\n[CLS]\n[SEP]\n[MASK]\na\nb\n##a\n")
    import_model(tmp_path / "theirs", tmp_path / "ours")
    assert json.loads((tmp_path / "ours" / "config.json").read_text())["problem"] == "multi_label"
