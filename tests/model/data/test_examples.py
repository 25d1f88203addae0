"""Examples to batches: all of them once per epoch, like lengths together, and padding that changes nothing."""

from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from model.data.examples import EncodedExamples, ExampleBatches, encoded, n_batches, padded_length
from model.evaluate import outputs_of_texts
from model.network.heads import new_classifier
from model.network.shape import DecoderConfig
from model.training.loss import classification_loss

SHAPE = DecoderConfig(
    vocab_size=257, n_layers=2, n_heads=2, n_kv_heads=1, d_model=16, d_head=8, d_ff=32, max_seq_len=24
)


def examples_of(lengths) -> EncodedExamples:
    tokens = [np.full(length, i % 250) for i, length in enumerate(lengths)]
    return EncodedExamples([f"id{i}" for i in range(len(tokens))], tokens, {"labels_B": np.arange(len(tokens)) % 2})


class Letters:
    """A tokenizer with an id per letter."""

    opening: tuple[int, ...] = (256,)
    closing: tuple[int, ...] = ()

    def encode_batch(self, texts: list[str]) -> list[list[int]]:
        return [[ord(letter) for letter in text] for text in texts]


@pytest.mark.parametrize(("n_examples", "rows"), [(96, 8), (241, 128), (255, 128), (100, 8), (7, 7), (8, 7), (1, 1)])
def test_f_an_epoch_reads_every_example_once(n_examples, rows):
    """Of 241 examples 113 were never read in an epoch of batches of 128, and nothing said so (tabnet#537)."""
    batches = ExampleBatches(examples_of(np.random.default_rng(0).integers(1, 30, n_examples)), rows=rows, seed=3)
    per_epoch = n_batches(n_examples, rows)
    assert per_epoch == -(-n_examples // rows)
    for epoch in range(3):
        steps = [batches.documents_of_batch(per_epoch * epoch + k) for k in range(per_epoch)]
        assert sorted(one for ids in steps for one in ids) == sorted(f"id{i}" for i in range(n_examples))
        sizes = {len(ids) for ids in steps}
        assert max(sizes) <= rows and max(sizes) - min(sizes) <= 1  # no small batch, whose update would be as large
        assert [batches.n_rows(per_epoch * epoch + k) for k in range(per_epoch)] == [len(ids) for ids in steps]


def test_batches_are_a_function_of_seed_and_number_alone():
    examples = examples_of(np.random.default_rng(0).integers(1, 30, 100))
    forward, anyhow = (ExampleBatches(examples, rows=8, seed=3) for _ in range(2))
    order = {k: forward.places(k).tolist() for k in range(36)}
    assert all(anyhow.places(k).tolist() == order[k] for k in (35, 2, 17, 0, 23))
    assert order[0] != order[12]
    assert ExampleBatches(examples, rows=8, seed=4).places(0).tolist() != order[0]


@pytest.mark.parametrize("longest", [None, 24])
def test_rows_of_all_ranks_are_the_whole_batch(longest):
    batches = ExampleBatches(examples_of([3, 9, 17, 2, 20, 24, 1, 5, 8]), rows=5, seed=0, longest=longest)
    for k in range(4):
        whole = batches.batch(k)
        for n_ranks in (1, 2, 3):
            parts = [batches.batch(k, rank, n_ranks) for rank in range(n_ranks)]
            for name, tensor in whole.items():
                assert torch.equal(torch.cat([part[name] for part in parts]), tensor)


def with_token_targets(lengths) -> EncodedExamples:
    tokens = [np.arange(length) + 1 for length in lengths]
    return EncodedExamples(
        ["a", "a", *"bcdefghi"][: len(lengths)],  # the first example is two rows, as its text is long
        tokens,
        {"starts_B": np.arange(len(lengths))},
        token_targets={
            "types_BT": [ids % 2 for ids in tokens],
            "labels_BT": [ids % 5 for ids in tokens],
            "allowed_BT": [ids > 2 for ids in tokens],
        },
    )


def test_targets_of_tokens_are_padded_so_that_padding_has_none():
    batch = with_token_targets([3, 1]).batch(np.array([0, 1]), 4)
    assert batch["types_BT"].tolist() == [[1, 0, 1, 0], [1, 0, 0, 0]]
    assert batch["labels_BT"].tolist() == [[1, 2, 3, -100], [1, -100, -100, -100]]
    assert batch["allowed_BT"].tolist() == [[False, False, True, False], [False] * 4]
    assert batch["starts_B"].tolist() == [0, 1]
    assert {name: x.dtype for name, x in batch.items() if x.ndim == 2} == {
        "ids_BT": torch.int64, "types_BT": torch.int64, "labels_BT": torch.int64, "allowed_BT": torch.bool,
    }  # fmt: skip


@pytest.mark.parametrize("longest", [None, 24])
def test_targets_of_tokens_are_divided_among_processes_with_their_rows(longest):
    batches = ExampleBatches(with_token_targets([3, 9, 17, 2, 20, 24, 1, 5, 8]), rows=5, seed=0, longest=longest)
    for k in range(4):
        whole = batches.batch(k)
        for row, (length, start) in enumerate(
            zip(whole["lengths_B"].tolist(), whole["starts_B"].tolist(), strict=True)
        ):
            assert batches.documents_of_batch(k)[row] == batches.examples_of(k).ids[start]
            assert whole["labels_BT"][row, :length].tolist() == [i % 5 for i in range(1, length + 1)]
        for n_ranks in (2, 3):
            parts = [batches.batch(k, rank, n_ranks) for rank in range(n_ranks)]
            assert all(torch.equal(torch.cat([part[name] for part in parts]), x) for name, x in whole.items())


@pytest.mark.parametrize("longest", [None, 100])
def test_batches_hold_texts_of_like_length(longest):
    """Lengths of short texts are spread like those of comments and headlines: log-normal about 20."""
    lengths = np.random.default_rng(0).lognormal(3, 0.5, 6400).clip(2, 100).astype(int)
    batches = ExampleBatches(examples_of(lengths), rows=64, seed=0, longest=longest)
    widths = [batches.batch(k)["ids_BT"].size(1) for k in range(100)]
    n_cells = sum(width * batches.n_rows(k) for k, width in enumerate(widths))
    assert 1 - lengths.sum() / n_cells < 0.1
    assert longest is None or len(set(widths)) <= 24


@given(length=st.integers(1, 5000))
@settings(max_examples=200, deadline=None)
def test_padded_lengths_add_at_most_an_eighth(length):
    width = padded_length(length)
    assert length <= width <= max(length * 1.125, length + 1) and padded_length(width) == width


def test_padded_rows_are_never_longer_than_the_model_reads():
    """23 tokens would be padded to 24; the model reads 23."""
    batches = ExampleBatches(examples_of([21, 23, 9, 17]), rows=2, seed=0, longest=23)
    assert sorted(batches.batch(k)["ids_BT"].size(1) for k in range(2)) == [18, 23] and padded_length(23) == 24


def test_padding_changes_no_result_of_a_row():
    model = new_classifier(SHAPE, 2, seed=0)
    torch.nn.init.normal_(model.score.weight)
    examples, places = examples_of([5, 1, 9, 3, 17, 2]), np.arange(6)
    losses, gradients = [], []
    for width in (17, 18, 24):
        batch = examples.batch(places, width)
        assert batch["ids_BT"].shape == (6, width)
        loss, n = classification_loss(model, batch)
        (gradient,) = torch.autograd.grad(loss, model.model.embed_tokens.weight)
        losses.append(loss / n)
        gradients.append(gradient)
    torch.testing.assert_close(losses[1], losses[0])
    torch.testing.assert_close(losses[2], losses[0])
    torch.testing.assert_close(gradients[2], gradients[0])


def test_encoded_opens_with_end_of_text_and_cuts_the_end():
    tokens, is_cut = encoded(Letters(), ["", "abc", "abcdef"], 4)
    assert [ids.tolist() for ids in tokens] == [[256], [256, 97, 98, 99], [256, 97, 98, 99]]
    assert is_cut.tolist() == [False, False, True]
    ends, is_cut = encoded(Letters(), ["", "abc", "abcdef"], 4, "left")
    assert [ids.tolist() for ids in ends] == [[256], [256, 97, 98, 99], [256, 100, 101, 102]]
    assert is_cut.tolist() == [False, False, True]


def test_encoded_keeps_the_closing_token_of_a_text_that_is_cut():
    letters = Letters()
    letters.closing = (255,)
    for side, kept in (("right", [97, 98]), ("left", [101, 102])):
        tokens, is_cut = encoded(letters, ["", "abcdef"], 4, side)
        assert [ids.tolist() for ids in tokens] == [[256, 255], [256, *kept, 255]]
        assert is_cut.tolist() == [False, True]
    with pytest.raises(ValueError, match="max_tokens=2 leaves no room for a text beside the 2 tokens"):
        encoded(letters, ["a"], 2)


def test_outputs_of_texts_do_not_depend_on_the_texts_beside_them():
    model = new_classifier(SHAPE, 3, seed=0).eval()
    torch.nn.init.normal_(model.score.weight)
    tokens = examples_of([5, 1, 9, 3, 24, 2]).tokens
    together = outputs_of_texts(model, tokens, torch.nn.Softmax(-1))
    np.testing.assert_allclose(together.sum(axis=1), 1)
    np.testing.assert_allclose(
        outputs_of_texts(model, tokens, torch.nn.Softmax(-1), tokens_per_pass=1), together, atol=1e-6
    )


def grown(epoch: int) -> EncodedExamples:
    """Texts are longer in later epochs, and the last has two rows from epoch 1 on."""
    lengths = [1 + i % 7 + epoch for i in range(20)] + [3] * (epoch > 0)
    examples = examples_of(lengths)
    return EncodedExamples([*examples.ids[:20], *["id19"] * (epoch > 0)], examples.tokens, examples.targets)


def test_every_epoch_reads_its_own_examples_once_in_as_many_batches():
    batches = ExampleBatches(grown(0), rows=4, seed=3, of_epoch=grown)
    assert batches.batches_per_epoch == 5
    for epoch in (0, 1, 2, 1, 0):  # in any order: a resume begins anywhere
        own, rows = grown(epoch), [batches.batch(5 * epoch + k) for k in range(5)]
        found = [row[:n].tolist() for b in rows for row, n in zip(b["ids_BT"], b["lengths_B"].tolist(), strict=True)]
        assert sorted(found) == sorted(tokens.tolist() for tokens in own.tokens)
        ids = [example for k in range(5) for example in batches.documents_of_batch(5 * epoch + k)]
        assert sorted(ids) == sorted(own.ids)
        assert [batches.n_rows(5 * epoch + k) for k in range(5)] == [len(b["ids_BT"]) for b in rows]
        assert batches.examples_of(5 * epoch).tokens[0].tolist() == own.tokens[0].tolist()


def test_examples_that_are_the_same_in_every_epoch_are_batched_as_without_epochs():
    examples = examples_of(range(1, 60))
    plain, named = (ExampleBatches(examples, rows=8, seed=1, of_epoch=one) for one in (None, lambda epoch: examples))
    for k in (0, 7, 8, 30):
        assert plain.places(k).tolist() == named.places(k).tolist()


def test_an_epoch_with_fewer_rows_than_batches_has_no_empty_batch():
    batches = ExampleBatches(
        examples_of([3] * 6), rows=1, seed=0, of_epoch=lambda epoch: examples_of([3] * (6 - epoch))
    )
    assert [batches.n_rows(k) for k in range(12)] == [1] * 12
    assert {example for k in range(6, 12) for example in batches.documents_of_batch(k)} == {
        f"id{i}" for i in range(5)
    }


def test_epochs_are_made_once_though_another_thread_reads_ahead():
    made = []
    batches = ExampleBatches(grown(0), rows=4, seed=3, of_epoch=lambda epoch: made.append(epoch) or grown(epoch))
    with ThreadPoolExecutor(4) as threads:
        list(threads.map(batches.batch, [0, 5, 1, 6, 2, 7, 3, 8] * 4))
    assert sorted(set(made)) == [0, 1] and len(made) == 2
