"""Every encoder against transformers in float32, read and written: hidden states, logits and loss, with padding,
token types and both of transformers' attention kernels.

Two tensors are equal here when the largest difference is at most 1e-5 of the largest magnitude.
"""

import dataclasses

import pytest
import torch
from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForMaskedLM,
    AutoModelForSequenceClassification,
    BertConfig,
    BertForPreTraining,
)

from model.data.batch_layout import IGNORE_INDEX
from model.data.tokenizer import load_tokenizer
from model.hf.config import config_to_hf
from model.hf.files import read_model, write_folder
from model.hf.tokenizer import read_exported_tokenizer
from model.hf.weights import weights_from_hf
from model.network.encoder import Encoder, MaskedLM
from model.network.heads import SequenceClassifier, classifier_from
from model.network.registry import KINDS
from model.network.shape import EncoderConfig
from model.network.visible import Visible
from model.training.cross_entropy import linear_cross_entropy
from tests.model.hf.encoders import ENCODERS
from tests.model.hf.test_parity import assert_equal

LENGTHS_B = torch.tensor([30, 11, 3])
LABELS = ("no", "yes", "so")
POOLINGS = [(name, "first") for name in ENCODERS] + [("modernbert", "mean"), ("modernbert-biases", "mean")]

POOLERS = [(name, True) for name, cfg in ENCODERS.items() if cfg.positions == "learned"]


@pytest.fixture(params=ENCODERS)
def cfg(request) -> EncoderConfig:
    return ENCODERS[request.param]


def random_ids(n_rows: int, n_tokens: int) -> torch.Tensor:
    """Without the padding ids of any family."""
    return torch.randint(5, 97, (n_rows, n_tokens), generator=torch.Generator().manual_seed(7))


def their_config(cfg: EncoderConfig, **changes):
    written = config_to_hf(cfg) | changes
    return AutoConfig.for_model(written.pop("model_type"), **written)


def padded(pad_id: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Ids whose rows end in padding, and which are real."""
    is_real_BT = torch.arange(30) < LENGTHS_B.unsqueeze(1)
    return random_ids(3, 30).masked_fill(~is_real_BT, pad_id), is_real_BT


def pad_id_of(cfg: EncoderConfig) -> int:
    return 1 if cfg.position_offset else 0


def check_logits_and_loss(ours: MaskedLM, theirs) -> None:
    ids_BT = random_ids(3, 30)
    is_target_BT = torch.rand(3, 30, generator=torch.Generator().manual_seed(2)) < 0.2
    labels_BT = ids_BT.masked_fill(~is_target_BT, IGNORE_INDEX)
    masked_BT = ids_BT.masked_fill(is_target_BT, 4)
    expected = theirs(masked_BT, labels=labels_BT)
    assert_equal(ours(masked_BT), expected.logits)
    x_MD = ours.trunk(masked_BT)[is_target_BT]  # as training does it: the head sees the masked tokens only
    sum_ = linear_cross_entropy(
        ours.transformed(x_MD), ours.lm_head.weight, ids_BT[is_target_BT], bias_V=ours.lm_head.bias
    )
    assert_equal(sum_ / is_target_BT.sum(), expected.loss)
    ids_BT, is_real_BT = padded(pad_id_of(ours.cfg))
    expected_BTV = theirs(ids_BT, attention_mask=is_real_BT.long()).logits
    got_BTV = ours(ids_BT, visible=Visible.padded(LENGTHS_B, 30))
    assert_equal(got_BTV[is_real_BT], expected_BTV[is_real_BT])


@torch.no_grad()
@pytest.mark.parametrize("kernel", ["eager", "sdpa"])
def test_masked_lm_read_from_transformers_gives_its_logits_and_loss(cfg, kernel, large_weights, tmp_path):
    theirs = AutoModelForMaskedLM.from_config(their_config(cfg), dtype=torch.float32, attn_implementation=kernel)
    large_weights(theirs, seed=1).save_pretrained(tmp_path)
    ours, labels = read_model(tmp_path)
    assert isinstance(ours, MaskedLM) and (ours.cfg, labels) == (cfg, None)
    check_logits_and_loss(ours, theirs)


@torch.no_grad()
def test_masked_lm_read_by_transformers_gives_our_logits_and_loss(cfg, large_weights, tmp_path):
    ours = large_weights(MaskedLM(cfg), seed=2)
    write_folder(tmp_path / "ours", ours)
    theirs, report = AutoModelForMaskedLM.from_pretrained(
        tmp_path / "ours", dtype=torch.float32, output_loading_info=True
    )
    assert not any(report[name] for name in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    check_logits_and_loss(ours, theirs.eval())


@torch.no_grad()
@pytest.mark.parametrize(("name", "has_pooler"), [*((name, False) for name in ENCODERS), *POOLERS])
def test_bare_encoder_gives_the_hidden_states_of_transformers_both_ways(name, has_pooler, large_weights, tmp_path):
    cfg = ENCODERS[name]
    options = {"add_pooling_layer": has_pooler} if cfg.positions == "learned" else {}
    theirs = large_weights(AutoModel.from_config(their_config(cfg), dtype=torch.float32, **options), seed=3)
    theirs.save_pretrained(tmp_path / "theirs")
    ours, _ = read_model(tmp_path / "theirs")
    assert isinstance(ours, Encoder) and ours.cfg == dataclasses.replace(cfg, has_pooler=has_pooler)
    write_folder(tmp_path / "ours", ours)
    back = AutoModel.from_pretrained(tmp_path / "ours", dtype=torch.float32, **options).eval()
    ids_BT, is_real_BT = padded(pad_id_of(cfg))
    got_BTD = ours(ids_BT, visible=Visible.padded(LENGTHS_B, 30))
    for model in (theirs, back):
        expected = model(ids_BT, attention_mask=is_real_BT.long())
        assert_equal(got_BTD[is_real_BT], expected.last_hidden_state[is_real_BT])
        if has_pooler:
            assert_equal(ours.pooled(got_BTD), expected.pooler_output)


@torch.no_grad()
@pytest.mark.parametrize(("name", "pooling"), POOLINGS)
def test_classifier_gives_the_logits_of_transformers_both_ways(name, pooling, large_weights, tmp_path):
    cfg = dataclasses.replace(ENCODERS[name], pooling=pooling)
    ours = large_weights(SequenceClassifier(cfg, n_classes=3), seed=5)
    write_folder(tmp_path / "ours", ours, labels=LABELS)
    theirs, report = AutoModelForSequenceClassification.from_pretrained(
        tmp_path / "ours", dtype=torch.float32, output_loading_info=True
    )
    assert not any(report[key] for key in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    assert theirs.eval().config.id2label == dict(enumerate(LABELS))
    ids_BT, is_real_BT = padded(pad_id_of(cfg))
    expected_BC = theirs(ids_BT, attention_mask=is_real_BT.long()).logits
    assert_equal(ours(ids_BT, LENGTHS_B), expected_BC)
    theirs.save_pretrained(tmp_path / "theirs")
    back, labels = read_model(tmp_path / "theirs")
    assert (back.cfg, labels) == (dataclasses.replace(cfg, tie_embeddings=back.cfg.tie_embeddings), LABELS)
    assert_equal(back(ids_BT, LENGTHS_B), expected_BC)


@torch.no_grad()
@pytest.mark.parametrize("name", ["bert", "bert-three-types", "roberta-untied"])
def test_token_types_give_the_hidden_states_of_transformers(name, large_weights, tmp_path):
    cfg = ENCODERS[name]
    theirs = large_weights(AutoModel.from_config(their_config(cfg), dtype=torch.float32), seed=4)
    theirs.save_pretrained(tmp_path)
    ours, _ = read_model(tmp_path)
    ids_BT = random_ids(2, 12)
    types_BT = torch.randint(0, cfg.n_token_types, (2, 12), generator=torch.Generator().manual_seed(3))
    assert_equal(ours(ids_BT, types_BT=types_BT), theirs(ids_BT, token_type_ids=types_BT).last_hidden_state)
    positions_BT = torch.arange(3, 15).expand(2, -1)
    expected_BTD = theirs(ids_BT, position_ids=positions_BT + cfg.position_offset).last_hidden_state
    assert_equal(ours(ids_BT, positions_BT=positions_BT), expected_BTD)


@torch.no_grad()
@pytest.mark.parametrize("window", [2, 4, 5, 8])
def test_window_of_modernbert_ends_where_that_of_transformers_does(window, large_weights, tmp_path):
    """Rows as long as the window, one shorter and one longer, so that an edge that is off by one shows."""
    cfg = dataclasses.replace(ENCODERS["modernbert-local"], sliding_window=window)
    theirs = large_weights(AutoModel.from_config(their_config(cfg), dtype=torch.float32), seed=6)
    theirs.save_pretrained(tmp_path)
    ours, _ = read_model(tmp_path)
    for n_tokens in (max(1, window // 2 - 1), window // 2, window // 2 + 1, window // 2 + 2, window, window + 1, 20):
        ids_BT = random_ids(1, n_tokens)
        assert_equal(ours(ids_BT), theirs(ids_BT).last_hidden_state)


@torch.no_grad()
def test_switches_change_the_hidden_states(large_weights):
    """The tests above would pass with a switch that both sides ignore."""
    changes = {
        "modernbert": (
            {"sliding_window": 4},
            {"sliding_layers": (1,)},
            {"rope_theta": 90.0},
            {"local_rope_theta": 90.0},
        ),
        "bert": ({"norm_eps": 0.1}, {"position_offset": 3}),
    }
    for name, several in changes.items():
        for change in several:
            plain = Encoder(ENCODERS[name])
            large_weights(plain, seed=3)
            other = Encoder(dataclasses.replace(ENCODERS[name], **change))
            weights = plain.state_dict()
            if "position_offset" in change:
                table = weights["model.embed_positions.weight"]
                weights["model.embed_positions.weight"] = torch.cat([table[:1].expand(3, -1), table.flip(0)])
            other.eval().load_state_dict(weights)
            assert (plain(random_ids(1, 40)) - other(random_ids(1, 40))).abs().max() > 0.01, (name, change)


@torch.no_grad()
def test_published_bert_with_old_names_and_the_head_of_the_next_sentence_is_read(large_weights, tmp_path):
    cfg = ENCODERS["bert"]
    theirs = large_weights(BertForPreTraining(BertConfig(**config_to_hf(cfg))), seed=8)
    old = {
        name.replace("LayerNorm.weight", "LayerNorm.gamma").replace("LayerNorm.bias", "LayerNorm.beta"): weight
        for name, weight in theirs.state_dict().items()
    }
    old["bert.embeddings.position_ids"] = torch.arange(64).unsqueeze(0)
    ours = MaskedLM(cfg)
    weights_from_hf(ours, cfg, old)
    assert_equal(ours(random_ids(2, 9)), theirs(random_ids(2, 9)).prediction_logits)
    theirs.save_pretrained(tmp_path)
    again, _ = read_model(tmp_path)
    assert isinstance(again, MaskedLM)
    assert_equal(again(random_ids(2, 9)), theirs(random_ids(2, 9)).prediction_logits)


@torch.no_grad()
@pytest.mark.parametrize("name", ["bert", "modernbert"])
def test_classifier_from_a_base_begins_as_in_transformers(name, large_weights, tmp_path):
    """With the hidden layer of the base where the families have it in common; the last layer is new on both sides."""
    cfg = ENCODERS[name]
    base = large_weights(Encoder(dataclasses.replace(cfg, has_pooler=True)) if name == "bert" else MaskedLM(cfg), 9)
    write_folder(tmp_path, base)
    theirs = AutoModelForSequenceClassification.from_pretrained(tmp_path, num_labels=3, dtype=torch.float32).eval()
    ours = classifier_from(base, n_classes=3, seed=0).eval()
    assert not ours.score.weight.any() and not ours.score.bias.any()
    ours.score.load_state_dict(theirs.classifier.state_dict())
    ids_BT, is_real_BT = padded(pad_id_of(cfg))
    assert_equal(ours(ids_BT, LENGTHS_B), theirs(ids_BT, attention_mask=is_real_BT.long()).logits)


@torch.no_grad()
@pytest.mark.parametrize("kind", ["encoder", "masked_lm", "sequence_classifier"])
def test_roberta_with_a_tokenizer_whose_padding_is_another_token_gives_its_results_in_transformers(
    kind, corpus, large_weights, tmp_path
):
    """transformers gave token 1, a byte in our tokenizers, no position of its own: all after it were one too low."""
    vocab_size = load_tokenizer(corpus / "tokenizer").vocab_size
    cfg = dataclasses.replace(ENCODERS["roberta"], vocab_size=vocab_size, has_pooler=kind == "encoder")
    labels = LABELS if kind == "sequence_classifier" else None
    ours = large_weights(KINDS[kind].build(cfg, labels or ()), seed=4)
    exported = read_exported_tokenizer(corpus / "tokenizer", vocab_size)
    write_folder(tmp_path / "out", ours, labels=labels, tokenizer=exported)
    ids_BT = torch.tensor([[5, 1, 7, 1, 1, 8, 9]])
    reader = {"encoder": AutoModel, "masked_lm": AutoModelForMaskedLM}.get(kind, AutoModelForSequenceClassification)
    theirs = reader.from_pretrained(tmp_path / "out", dtype=torch.float32).eval()(ids_BT)
    got = ours(ids_BT, torch.tensor([7])) if labels else ours(ids_BT)
    assert_equal(got, theirs.last_hidden_state if kind == "encoder" else theirs.logits)


@torch.no_grad()
def test_roberta_without_a_tokenizer_stays_a_roberta(large_weights, tmp_path):
    write_folder(tmp_path / "out", large_weights(MaskedLM(ENCODERS["roberta"]), seed=4))
    assert read_model(tmp_path / "out")[0].cfg == ENCODERS["roberta"]
