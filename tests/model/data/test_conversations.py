"""Conversations in shared rows: none is affected by those that share its row, whichever row that is."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from model.data.chat import Message, Rendered, chat_template
from model.data.chat_templates import TEMPLATES
from model.data.conversations import EncodedConversations, encoded_conversations, packed_rows
from model.data.examples import ExampleBatches
from model.data.tokenizer import TOKENIZER, load_tokenizer
from model.evaluate_conversations import conversation_losses
from model.network.decoder import new_decoder
from model.network.lora import add_lora
from model.network.lora_config import LoraConfig
from model.network.shape import DecoderConfig
from model.training.loss import language_model_loss
from model.training.step import micro_batches

VOCAB = 31
SHAPE = {"vocab_size": VOCAB, "n_layers": 2, "n_heads": 2, "n_kv_heads": 1, "d_model": 16, "d_head": 8, "d_ff": 24}
KINDS = {
    "rotary": {},
    "learned": {"positions": "learned", "norm": "layernorm", "mlp": "gelu"},
    "windows": {"sliding_window": 3, "sliding_layers": (0,)},
    "lora": {},
}


def conversation(length: int, seed: int) -> Rendered:
    """`length` ids of which some are supervised, the last always."""
    rng = np.random.default_rng(seed)
    is_supervised = rng.random(length) < 0.5
    is_supervised[-1] = True
    return Rendered(rng.integers(0, VOCAB, length), is_supervised)


def decoder_of(kind: str):
    decoder = new_decoder(DecoderConfig(max_seq_len=64, **SHAPE, **KINDS[kind]), seed=0)
    for number, weight in enumerate(
        decoder.parameters()
    ):  # heads and outputs start at zero, where a leak has no effect
        torch.nn.init.normal_(weight, std=0.3, generator=torch.Generator().manual_seed(number))
    if kind == "lora":
        add_lora(decoder, LoraConfig(rank=2, alpha=4.0), seed=0)
        for weight in decoder.parameters():
            if weight.requires_grad:
                torch.nn.init.normal_(weight, std=0.3, generator=torch.Generator().manual_seed(7))
    return decoder


def gradients(decoder, batches) -> tuple[float, int, list[torch.Tensor]]:
    """The summed loss of the batches, the number of targets, and the gradient of every trained weight."""
    decoder.zero_grad()
    losses, n_targets = 0.0, 0
    for batch in batches:
        loss, n = language_model_loss(decoder, batch)
        loss.backward()
        losses, n_targets = losses + loss.item(), n_targets + int(n)
    return losses, n_targets, [weight.grad.clone() for weight in decoder.parameters() if weight.grad is not None]


def alone(one: Rendered) -> dict[str, torch.Tensor]:
    """A conversation as a plain causal row, without documents and positions."""
    targets = np.where(one.is_supervised[1:], one.ids[1:], -100)
    return {"ids_BT": torch.from_numpy(one.ids[None, :-1]), "targets_BT": torch.from_numpy(targets[None])}


@pytest.mark.parametrize("room", [None, 12])
@pytest.mark.parametrize("kind", KINDS)
def test_the_loss_of_shared_rows_is_the_sum_of_the_separate_losses(kind, room):
    """A mask that lets conversations see each other, or positions that go on, leave a loss that still falls
    (LlamaFactory#2289, transformers PR 46634)."""
    conversations = [conversation(length, seed) for seed, length in enumerate((20, 3, 7, 2, 12, 5, 9, 4))]
    decoder = decoder_of(kind)
    packed = packed_rows(conversations, room=room)
    assert packed["ids_BT"].size(0) < len(conversations)
    loss, n_targets, of_packed = gradients(decoder, [packed])
    expected, n_expected, separate = gradients(decoder, [alone(one) for one in conversations])
    assert n_targets == n_expected and loss == pytest.approx(expected, abs=1e-5 * n_expected)
    for ours, theirs in zip(of_packed, separate, strict=True):
        torch.testing.assert_close(ours, theirs, atol=1e-4, rtol=1e-4)
    # and in the parts that pass through the model at once, which leave out columns that no row uses
    loss, n_targets, of_parts = gradients(decoder, micro_batches(packed, 2))
    assert n_targets == n_expected and loss == pytest.approx(expected, abs=1e-5 * n_expected)
    for ours, theirs in zip(of_parts, separate, strict=True):
        torch.testing.assert_close(ours, theirs, atol=1e-4, rtol=1e-4)


def test_losses_of_an_evaluation_are_those_of_each_conversation_alone():
    conversations = [conversation(length, seed) for seed, length in enumerate((20, 3, 7, 2, 12, 5))]
    decoder = decoder_of("rotary").eval()
    encoded = EncodedConversations([str(place) for place in range(6)], conversations)
    for tokens_per_pass in (1, 16, 1000):
        nats_N, n_targets_N = conversation_losses(decoder, encoded, tokens_per_pass)
        for one, nats, n in zip(conversations, nats_N, n_targets_N, strict=True):
            loss, n_expected = language_model_loss(decoder, alone(one))
            assert n == n_expected and nats == pytest.approx(loss.item(), abs=1e-5)


lengths_lists = st.lists(st.integers(2, 40), min_size=1, max_size=20)


@settings(max_examples=40, deadline=None)
@given(lengths=lengths_lists, room=st.sampled_from([None, 8, 16]), n_ranks=st.sampled_from([1, 2, 3]))
def test_every_conversation_lies_whole_in_one_row_of_one_process(lengths, room, n_ranks):
    conversations = [conversation(length, seed) for seed, length in enumerate(lengths)]
    shares = [packed_rows(conversations, None, room, rank, n_ranks) for rank in range(n_ranks)]
    found = {}
    for share in shares:
        for ids_T, documents_T, positions_T, targets_T, used in zip(
            *(share[name] for name in ("ids_BT", "documents_BT", "positions_BT", "targets_BT", "lengths_B")),
            strict=True,
        ):
            assert (documents_T[:used] >= 0).all() and (documents_T[used:] == -1).all()
            for number in documents_T[:used].unique().tolist():
                places = (documents_T == number).nonzero().flatten()
                assert places.tolist() == list(range(places[0], places[0] + len(places)))
                assert positions_T[places].tolist() == list(range(len(places)))
                assert number not in found
                found[number] = ids_T[places].tolist(), targets_T[places].tolist()
    assert sorted(found) == list(range(len(lengths)))
    for number, (ids, targets) in found.items():
        one = conversations[number]
        assert ids == one.ids[:-1].tolist()
        assert targets == np.where(one.is_supervised[1:], one.ids[1:], -100).tolist()
    rows = torch.cat([share["ids_BT"] for share in shares])
    assert torch.equal(rows, packed_rows(conversations, None, room)["ids_BT"])


def test_batches_of_conversations_are_a_function_of_seed_and_number_alone():
    conversations = [conversation(2 + seed % 30, seed) for seed in range(50)]
    encoded = EncodedConversations([str(place) for place in range(50)], conversations)
    forward, anyhow = (ExampleBatches(encoded, rows=8, seed=3) for _ in range(2))
    batches = [forward.batch(k) for k in range(14)]
    for k in (13, 0, 7):
        again = anyhow.batch(k)
        assert all(torch.equal(again[name], batches[k][name]) for name in again)
        assert forward.n_rows(k) == len(again["ids_BT"]) < 8
    read = [one for k in range(7) for one in forward.documents_of_batch(k)]
    assert sorted(read, key=int) == encoded.ids and read != encoded.ids
    assert forward.documents_of_batch(7) != forward.documents_of_batch(0)


@pytest.fixture(scope="module")
def template(trained):
    return chat_template(load_tokenizer(trained / TOKENIZER), TEMPLATES["alpaca"])


def encoded(template, conversation, max_tokens: int, side: str) -> EncodedConversations:
    return encoded_conversations(
        template, ["one"], [conversation], template.rendered([conversation]), max_tokens, side
    )


ASKED = [Message("user", "ka lo mi " * 20), Message("assistant", "tu re")]


@pytest.mark.parametrize(("side", "is_read"), [("right", False), ("left", True)])
def test_the_side_of_a_long_conversation_that_is_not_read_may_hold_its_answer(template, side, is_read):
    """One without an answer is named: its loss would be 0 / 0."""
    whole = template.rendered([ASKED])[0]
    found = encoded(template, ASKED, 20, side)
    assert len(whole.ids) > 40 and (found.ids == ["one"]) == is_read == (not found.unsupervised)
    if is_read:
        assert found.n_cut == 1 and np.array_equal(found.rendered[0].ids, whole.ids[-20:])


def test_the_oldest_turns_of_a_long_conversation_are_left_out_whole(template):
    told, last = [Message("system", "shabel")], [Message("user", "dor?"), Message("assistant", "fin")]
    kept = template.rendered([[*told, *last]])[0]
    for max_tokens in (len(kept.ids), len(kept.ids) + 5):
        found = encoded(template, [*told, *ASKED, *ASKED, *last], max_tokens, "left")
        assert found.n_cut == 1 and np.array_equal(found.rendered[0].ids, kept.ids)
        assert np.array_equal(found.rendered[0].is_supervised, kept.is_supervised)


def test_a_conversation_in_which_nothing_is_trained_is_named(template):
    rendered = template.rendered([ASKED], trained=("tool",))
    assert encoded_conversations(template, ["one"], [ASKED], rendered, 500).unsupervised == ("one",)
