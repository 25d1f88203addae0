"""gristmill export of the models of tasks: transformers gives the same tags, spans and labels for the same texts."""

import json

import numpy as np
import pytest
import torch
from transformers import AutoModelForQuestionAnswering, AutoModelForTokenClassification, AutoTokenizer, pipeline

from model.data.questions import encoded_questions
from model.data.tokenizer import Tokenizer, load_tokenizer
from model.evaluate import answers_of_texts, outputs_of_texts
from model.hf.tokenizer_import import import_tokenizer
from model.network.heads import SequenceClassifier, SpanClassifier, TaskHead, TokenClassifier
from model.network.registry import describe, save_model
from model.network.shape import DecoderConfig, EncoderConfig, switches_of
from pipeline.cli import main
from tests.model.hf.tokenizers_of_others import save

TAGS = ("O", "B-PER", "I-PER", "B-LOC")
SIZES = {"vocab_size": 1200, "n_layers": 2, "n_heads": 4, "d_model": 32, "d_head": 8, "d_ff": 48, "max_seq_len": 64}
BERT = EncoderConfig(**SIZES, n_kv_heads=4, tie_embeddings=True, **switches_of("bert"))
CONFIGS = {"bert": BERT, "gpt2": DecoderConfig(**SIZES, n_kv_heads=2)}
TEXTS = ["return self.Stra\u00dfe  and \u00c9t\u00e9", "import \u65e5\u672c json\n", "x"]


@pytest.fixture(autouse=True)
def elsewhere(tmp_path, monkeypatch):
    monkeypatch.setenv("GRISTMILL_DATA", str(tmp_path / "data"))
    monkeypatch.chdir(tmp_path)


def exported(tmp_path, model: TaskHead, tokenizer: str, **about) -> Tokenizer:
    """Save the model with large weights and one of the tokenizers, and export it to `out`."""
    torch.manual_seed(1)
    with torch.no_grad():
        for weight in model.parameters():
            weight.add_(torch.empty_like(weight).normal_(std=0.3))
    (tmp_path / "model").mkdir()
    import_tokenizer(save(tokenizer, tmp_path / "source"), tmp_path / "model" / "tokenizer", vocab_size=1200)
    save_model(tmp_path / "model", model.eval(), describe(model.cfg, **about))
    assert main(["export", "model", "out"]) == 0
    return load_tokenizer(tmp_path / "model" / "tokenizer")


@pytest.mark.parametrize("name", CONFIGS)
def test_exported_tagger_gives_our_tags_at_our_offsets(name, tmp_path):
    model = TokenClassifier(CONFIGS[name], len(TAGS))
    ours = exported(tmp_path, model, name, labels=TAGS, kind="token_classifier")
    pieces = ours.encode_offsets(TEXTS)
    tokens = [np.array([*ours.opening, *one.ids, *ours.closing]) for one in pieces]
    expected = answers_of_texts(model, tokens, lambda logits, _: list(logits.softmax(dim=-1)))
    theirs = AutoModelForTokenClassification.from_pretrained("out", dtype=torch.float32).eval()
    given = AutoTokenizer.from_pretrained("out")(TEXTS, padding=True, return_tensors="pt")
    with torch.no_grad():
        got = theirs(**given).logits.softmax(dim=-1).double()
    for row, ids in enumerate(tokens):
        assert given["input_ids"][row, : len(ids)].tolist() == ids.tolist()
        torch.testing.assert_close(got[row, : len(ids)], expected[row][: len(ids)], atol=1e-4, rtol=1e-4)
    tagged = pipeline("token-classification", "out", dtype=torch.float32, ignore_labels=[])(TEXTS)
    for of_text, one, probabilities in zip(tagged, pieces, expected, strict=True):
        first = len(ours.opening)
        tags = [TAGS[i] for i in probabilities[first : first + len(one)].argmax(dim=-1)]
        assert [piece["entity"] for piece in of_text] == tags
        if name == "bert":  # a GPT-2's pieces begin with the space before a word
            found = [(piece["start"], piece["end"]) for piece in of_text]
            assert found == list(zip(one.starts.tolist(), one.ends.tolist(), strict=True))


@pytest.mark.parametrize("name", CONFIGS)
def test_exported_model_of_spans_gives_our_logits_for_pairs(name, tmp_path, capsys):
    model = SpanClassifier(CONFIGS[name])
    ours = exported(tmp_path, model, name, kind="span_classifier")
    assert "AutoModelForQuestionAnswering" in capsys.readouterr().out.splitlines()[-1]
    rows = encoded_questions(["1"], ["what is imported?"], [TEXTS[1]], ours, max_tokens=64)
    batch = rows.batch(np.array([0]))
    theirs = AutoModelForQuestionAnswering.from_pretrained("out", dtype=torch.float32).eval()
    given = AutoTokenizer.from_pretrained("out")("what is imported?", TEXTS[1], return_tensors="pt")
    assert given["input_ids"].tolist() == batch["ids_BT"].tolist()
    if name == "bert":
        assert given["token_type_ids"].tolist() == batch["types_BT"].tolist()
    with torch.no_grad():
        out, expected = theirs(**given), model(batch["ids_BT"], batch["lengths_B"], batch["types_BT"])
    got = torch.stack([out.start_logits, out.end_logits], dim=2)
    torch.testing.assert_close(got, expected, atol=1e-4, rtol=1e-4)
    assert main(["export", "out", "again"]) == 0
    again = AutoTokenizer.from_pretrained("again")("what is imported?", TEXTS[1])
    assert again["input_ids"] == batch["ids_BT"][0].tolist()


def test_exported_classifier_of_several_labels_gives_each_its_own_probability(tmp_path):
    model = SequenceClassifier(BERT, 3)
    ours = exported(tmp_path, model, "bert", labels=("a", "b", "c"), problem="multi_label")
    tokens = [np.array([*ours.opening, *ids, *ours.closing]) for ids in ours.encode_batch(TEXTS)]
    expected = outputs_of_texts(model, tokens, torch.sigmoid)
    answers = pipeline("text-classification", "out", dtype=torch.float32, top_k=None)(TEXTS)
    for answer, probabilities in zip(answers, expected, strict=True):
        found = {one["label"]: one["score"] for one in answer}
        np.testing.assert_allclose([found[name] for name in "abc"], probabilities, atol=1e-4)
    assert main(["export", "out", "again"]) == 0
    assert (
        json.loads((tmp_path / "again" / "config.json").read_text())["problem_type"] == "multi_label_classification"
    )


@pytest.mark.parametrize("kind", ["token_classifier", "span_classifier"])
def test_exported_folder_of_a_task_is_exported_again_and_refused_as_gguf(kind, tmp_path, capsys):
    model = TokenClassifier(BERT, len(TAGS)) if kind == "token_classifier" else SpanClassifier(BERT)
    exported(tmp_path, model, "bert", labels=TAGS if kind == "token_classifier" else None, kind=kind)
    assert main(["export", "out", "again"]) == 0
    for name in ("model.safetensors", "config.json"):
        assert (tmp_path / "again" / name).read_bytes() == (tmp_path / "out" / name).read_bytes()
    assert main(["export", "model", "x.gguf", "--format", "gguf"]) == 2
    assert "contains no decoder, but GGUF is for decoders" in capsys.readouterr().err


def test_export_of_switches_that_no_family_has_is_refused(tmp_path, capsys):
    """A head needs a class of transformers, and that a family with the switches of its trunk."""
    (tmp_path / "model").mkdir()
    cfg = DecoderConfig(**SIZES, n_kv_heads=2, norm="layernorm")
    import_tokenizer(save("gpt2", tmp_path / "source"), tmp_path / "model" / "tokenizer", vocab_size=1200)
    save_model(tmp_path / "model", TokenClassifier(cfg, 4), describe(cfg, TAGS, kind="token_classifier"))
    assert main(["export", "model", "out"]) == 2
    assert "no family of Hugging Face has a decoder with these switches" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
