"""Every family against transformers in float32: logits and loss, read and written; padding, cache and greedy text.

Two tensors are equal here when the largest difference is at most 1e-5 of the largest magnitude.
"""

import dataclasses

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForSequenceClassification

from model.data.batch_layout import IGNORE_INDEX
from model.hf.config import config_to_hf
from model.hf.files import read_classifier, read_folder, write_folder
from model.hf.weights import weights_from_hf
from model.network.decoder import Decoder
from model.network.heads import SequenceClassifier
from model.network.shape import DecoderConfig, RopeScaling
from model.network.visible import Visible
from model.training.loss import language_model_loss

TOLERANCE = 1e-5  # observed: 2e-6


def assert_equal(got: torch.Tensor, expected: torch.Tensor) -> None:
    assert got.shape == expected.shape
    scale = expected.abs().max()
    difference = (got - expected).abs().max()
    assert difference <= TOLERANCE * scale, f"{difference:.2e} of {scale:.2e}"


def random_ids(rows: int, seq_len: int) -> torch.Tensor:
    return torch.randint(0, 97, (rows, seq_len), generator=torch.Generator().manual_seed(7))


def their_model(cfg: DecoderConfig, large_weights, seed: int = 1):
    written = config_to_hf(cfg)
    model_type = written.pop("model_type")
    theirs = AutoModelForCausalLM.from_config(AutoConfig.for_model(model_type, **written), dtype=torch.float32)
    return large_weights(theirs, seed)


@torch.no_grad()
def test_family_read_from_transformers_gives_its_logits_loss_padding_cache_and_greedy_text(
    cfg, large_weights, tmp_path
):
    theirs = their_model(cfg, large_weights)
    theirs.save_pretrained(tmp_path)
    ours = read_folder(tmp_path)
    full_BTV = check_logits_and_loss(ours, theirs)
    check_left_padding(ours, theirs)
    check_cached_steps(ours, theirs, full_BTV)
    ids_BT = random_ids(3, 30)
    written_BT = theirs.generate(
        ids_BT, do_sample=False, max_new_tokens=20, attention_mask=torch.ones(3, 30), eos_token_id=None
    )
    assert torch.equal(greedy_with_cache(ours, ids_BT, 20), written_BT)


@torch.no_grad()
def test_family_read_by_transformers_gives_our_logits_and_loss(cfg, large_weights, tmp_path):
    """What was read is the same model in both directions, so that padding and cache need one of them."""
    ours = large_weights(Decoder(cfg), seed=2)
    write_folder(tmp_path / "ours", ours)
    theirs = AutoModelForCausalLM.from_pretrained(tmp_path / "ours", dtype=torch.float32).eval()
    check_logits_and_loss(ours, theirs)


def check_logits_and_loss(ours: Decoder, theirs) -> torch.Tensor:
    """Returns their logits of random_ids(3, 50)."""
    ids_BT = random_ids(3, 50)
    expected = theirs(ids_BT, labels=ids_BT)
    assert_equal(ours(ids_BT), expected.logits)
    targets_BT = torch.cat([ids_BT[:, 1:], torch.full((3, 1), IGNORE_INDEX)], dim=1)
    loss_sum, n = language_model_loss(ours, {"ids_BT": ids_BT, "targets_BT": targets_BT})
    assert_equal(loss_sum / n, expected.loss)
    return expected.logits


def check_left_padding(ours: Decoder, theirs) -> None:
    ids_BT = random_ids(3, 40)
    is_real_BT = torch.arange(40) >= torch.tensor([[0], [7], [33]])
    positions_BT = (is_real_BT.cumsum(dim=1) - 1).clamp(min=0)
    expected_BTV = theirs(ids_BT, attention_mask=is_real_BT.long(), position_ids=positions_BT).logits
    mask_BTS = torch.ones(40, 40, dtype=torch.bool).tril() & is_real_BT[:, None, :]
    mask_BTS = mask_BTS | torch.eye(40, dtype=torch.bool)  # padding attends to itself: no softmax of nothing
    got_BTV = ours(ids_BT, visible=Visible.mask(mask_BTS), positions_BT=positions_BT)
    assert_equal(got_BTV[is_real_BT], expected_BTV[is_real_BT])


def check_cached_steps(ours: Decoder, theirs, full_BTV: torch.Tensor) -> None:
    """`full`: their logits of random_ids(3, 50) in one pass."""
    ids_BT, cache, past = random_ids(3, 50), ours.new_cache(3), None
    for start, end in ((0, 12), (12, 13), (13, 20), (20, 21), (21, 22)):  # some at once, or one
        output = theirs(ids_BT[:, start:end], past_key_values=past, use_cache=True)
        past = output.past_key_values
        got_BTV = ours(ids_BT[:, start:end], cache=cache)
        assert_equal(got_BTV, output.logits)
        assert_equal(got_BTV, full_BTV[:, start:end])


def greedy_with_cache(model: Decoder, ids_BT: torch.Tensor, n_tokens: int) -> torch.Tensor:
    cache = model.new_cache(ids_BT.size(0))
    unread_BT = ids_BT
    for _ in range(n_tokens):
        unread_BT = model(unread_BT, cache=cache)[:, -1:].argmax(dim=-1)
        ids_BT = torch.cat([ids_BT, unread_BT], dim=1)
    return ids_BT


@torch.no_grad()
@pytest.mark.parametrize(
    "scaling",
    [
        RopeScaling(kind="llama3", factor=32.0, original_max_seq_len=8192),  # Llama 3.2
        RopeScaling(kind="linear", factor=4.0),
        None,
    ],
)
def test_llama_far_beyond_the_context_it_was_trained_with_gives_the_logits_of_transformers(
    scaling, decoders, large_weights, tmp_path
):
    cfg = dataclasses.replace(
        decoders["llama"], d_head=64, max_seq_len=131_072, rope_theta=500_000.0, rope_scaling=scaling
    )
    theirs = their_model(cfg, large_weights)
    theirs.save_pretrained(tmp_path)
    ours = read_folder(tmp_path)
    assert ours.cfg == cfg
    ids_BT = random_ids(1, 48)
    positions_BT = torch.arange(0, 48 * 2700, 2700)[None]  # up to 126,900
    expected_BTV = theirs(ids_BT, position_ids=positions_BT).logits
    mask_BTS = torch.ones(1, 48, 48, dtype=torch.bool).tril()
    assert_equal(ours(ids_BT, visible=Visible.mask(mask_BTS), positions_BT=positions_BT), expected_BTV)


@torch.no_grad()
def test_scaled_positions_and_window_change_the_logits(decoders, large_weights):
    """The tests above would pass with a switch that both sides ignore."""
    for name, off in (("llama-scaled", {"rope_scaling": None}), ("qwen3-window", None), ("mistral", None)):
        cfg = decoders[name]
        without = dataclasses.replace(cfg, **(off or {"sliding_window": None, "sliding_layers": ()}))
        ours, other = large_weights(Decoder(cfg), seed=3), large_weights(Decoder(without), seed=3)
        ids_BT = random_ids(1, 40)
        assert (ours(ids_BT) - other(ids_BT)).abs().max() > 0.1, name


@pytest.mark.parametrize("name", ["qwen3", "gpt2", "llama", "mistral"])
@torch.no_grad()
def test_classifier_gives_the_logits_of_transformers_on_padded_rows(name, decoders, large_weights, tmp_path):
    ours = large_weights(SequenceClassifier(decoders[name], n_classes=3), seed=5)
    write_folder(tmp_path / "ours", ours, labels=("no", "yes", "so"))
    theirs = AutoModelForSequenceClassification.from_pretrained(tmp_path / "ours", dtype=torch.float32).eval()
    assert theirs.config.id2label == {0: "no", 1: "yes", 2: "so"}
    theirs.config.pad_token_id = 0
    ids_BT, lengths_B = random_ids(3, 12).clamp(min=1), torch.tensor([12, 5, 1])
    is_real_BT = torch.arange(12)[None, :] < lengths_B[:, None]
    ids_BT = ids_BT * is_real_BT
    expected_BC = theirs(ids_BT, attention_mask=is_real_BT.long()).logits
    assert_equal(ours(ids_BT, lengths_B), expected_BC)
    theirs.save_pretrained(tmp_path / "theirs")
    back, labels = read_classifier(tmp_path / "theirs")
    assert labels == ("no", "yes", "so")
    assert_equal(back(ids_BT, lengths_B), expected_BC)


def test_published_gpt2_layout_without_prefix_and_with_mask_buffers_is_read(decoders, large_weights):
    theirs = their_model(decoders["gpt2"], large_weights)
    weights = {
        name.removeprefix("transformer."): w for name, w in theirs.state_dict().items() if "lm_head" not in name
    }
    buffers = {f"h.{layer}.attn.{name}": torch.ones(1) for layer in range(4) for name in ("bias", "masked_bias")}
    ours = Decoder(decoders["gpt2"])
    weights_from_hf(ours, ours.cfg, weights | buffers)
    assert_equal(ours(random_ids(1, 20)), theirs(random_ids(1, 20)).logits)
