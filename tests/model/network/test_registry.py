"""Saved models: written and read back by kind, and refused with a clear message."""

import dataclasses
import json

import pytest
import torch

from model.network.decoder import new_decoder
from model.network.encoder import Encoder, MaskedLM, new_masked_lm
from model.network.heads import new_classifier
from model.network.registry import (
    BASES,
    KINDS,
    describe,
    load_classifier,
    load_decoder,
    load_encoder,
    load_model,
    save_model,
)
from model.network.shape import DecoderConfig, EncoderConfig, switches_of

CONFIG = DecoderConfig(
    vocab_size=19,
    n_layers=1,
    n_heads=2,
    n_kv_heads=1,
    d_model=8,
    d_head=4,
    d_ff=12,
    max_seq_len=6,
    tie_embeddings=True,
)
BERT = EncoderConfig(
    vocab_size=19,
    n_layers=1,
    n_heads=2,
    n_kv_heads=2,
    d_model=8,
    d_head=4,
    d_ff=12,
    max_seq_len=6,
    tie_embeddings=True,
    has_pooler=True,
    **switches_of("bert"),
)

MODERNBERT = EncoderConfig(
    vocab_size=19,
    n_layers=1,
    n_heads=2,
    n_kv_heads=2,
    d_model=8,
    d_head=4,
    d_ff=12,
    max_seq_len=6,
    tie_embeddings=True,
    **switches_of("modernbert"),
)


@pytest.mark.parametrize("tied", [True, False])
def test_load_decoder_gives_back_what_save_model_wrote(tmp_path, tied):
    model = new_decoder(dataclasses.replace(CONFIG, tie_embeddings=tied), seed=0)
    save_model(tmp_path, model, describe(model.cfg))
    back = load_decoder(tmp_path)
    assert back.cfg == model.cfg and not back.training
    ids = torch.arange(6)[None]
    assert torch.equal(back(ids), model(ids))


def test_load_classifier_gives_back_model_and_labels(tmp_path):
    classifier = new_classifier(CONFIG, n_classes=3, seed=1)
    torch.nn.init.normal_(classifier.score.weight)
    save_model(tmp_path, classifier, describe(CONFIG, labels=("a", "b", "c")))
    back, labels = load_classifier(tmp_path)
    assert labels == ("a", "b", "c")
    ids, lengths = torch.arange(6)[None], torch.tensor([4])
    assert torch.equal(back(ids, lengths), classifier(ids, lengths))


def test_load_decoder_of_a_classifier_says_what_it_is(tmp_path):
    save_model(tmp_path, new_classifier(CONFIG, n_classes=2, seed=1), describe(CONFIG, labels=("a", "b")))
    with pytest.raises(ValueError, match=r"describes a classifier .*, expected a language model"):
        load_decoder(tmp_path)


def test_load_decoder_of_a_folder_without_a_model_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"no config\.json"):
        load_decoder(tmp_path)


def test_load_decoder_with_an_unknown_config_field_is_refused(tmp_path):
    save_model(tmp_path, new_decoder(CONFIG, seed=0), describe(CONFIG))
    config = json.loads((tmp_path / "config.json").read_text())
    config["model"]["n_experts"] = 8
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(ValueError, match="n_experts"):
        load_decoder(tmp_path)


def test_load_decoder_with_truncated_weights_names_the_file(tmp_path):
    save_model(tmp_path, new_decoder(CONFIG, seed=0), describe(CONFIG))
    path = tmp_path / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-10])
    with pytest.raises(ValueError, match=r"model\.safetensors: not a whole safetensors file"):
        load_decoder(tmp_path)


def test_load_model_takes_each_kind_by_its_description(tmp_path):
    (tmp_path / "decoder").mkdir()
    (tmp_path / "classifier").mkdir()
    save_model(tmp_path / "decoder", new_decoder(CONFIG, seed=0), describe(CONFIG))
    labels = ("a", "b")
    save_model(tmp_path / "classifier", new_classifier(CONFIG, n_classes=2, seed=0), describe(CONFIG, labels))
    found = [load_model(tmp_path / name) for name in ("decoder", "classifier")]
    assert [type(model).__name__ for model, _ in found] == ["Decoder", "SequenceClassifier"]
    assert [names for _, names in found] == [None, labels]


def test_load_model_of_an_unknown_kind_names_those_there_are(tmp_path):
    save_model(tmp_path, new_decoder(CONFIG, seed=0), {**describe(CONFIG), "kind": "diffusion"})
    with pytest.raises(ValueError, match=r"describes 'diffusion', expected a language model .* or a classifier"):
        load_model(tmp_path)


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind != "decoder"])
def test_load_model_gives_back_an_encoder_of_each_kind(kind, tmp_path):
    labels = ("a", "b") if KINDS[kind].has_labels else None
    model = KINDS[kind].build(BERT, labels or ()).eval()
    torch.nn.init.normal_(next(model.parameters()))
    description = describe(BERT, labels, kind=kind)
    assert description.get("trunk") == (None if kind in BASES else "encoder")
    save_model(tmp_path, model, description)
    back, found = load_model(tmp_path)
    assert (type(back), back.cfg, found) == (type(model), BERT, labels)
    for name, weight in model.named_parameters():
        assert torch.equal(back.get_parameter(name), weight)


def test_load_encoder_takes_it_with_and_without_a_head_and_nothing_else(tmp_path):
    save_model(tmp_path, Encoder(BERT), describe(BERT, kind="encoder"))
    assert isinstance(load_encoder(tmp_path), Encoder)
    save_model(tmp_path, new_masked_lm(BERT, seed=0), describe(BERT))
    assert isinstance(load_encoder(tmp_path), MaskedLM)
    save_model(tmp_path, new_decoder(CONFIG, seed=0), describe(CONFIG))
    with pytest.raises(ValueError, match=r"describes a language model .*, expected an encoder .* or a masked"):
        load_encoder(tmp_path)


@pytest.mark.parametrize(
    ("trunk", "message"),
    [(None, "trunk='None'"), ("engine", "trunk='engine'"), ([], "must be one of decoder, encoder")],
)
def test_classifier_without_a_known_trunk_is_refused(trunk, message, tmp_path):
    description = {**describe(CONFIG, ("a", "b")), "trunk": trunk}
    save_model(tmp_path, new_classifier(CONFIG, 2, seed=0), description)
    with pytest.raises(ValueError, match=message):
        load_model(tmp_path)


def test_head_of_each_kind_is_what_the_trunk_does_not_hold():
    """Of models whose head is not tied: a tied one has no weights of its own. Only ModernBERT has a hidden layer in
    the head of tokens."""
    configs = {"decoder": CONFIG, "encoder": BERT, "modernbert": MODERNBERT}
    for kind in KINDS.values():
        models = [
            kind.build(dataclasses.replace(cfg, tie_embeddings=False), ("a", "b"))
            for trunk, cfg in configs.items()
            if kind.trunk in (None, trunk, {"modernbert": "encoder"}.get(trunk))
        ]
        names = [name for model in models for name, _ in model.named_parameters()]
        assert {name.partition(".")[0] for name in names if not name.startswith("model.")} == set(kind.head)
