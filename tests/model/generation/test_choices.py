"""Likelihoods of choices against the plain full pass, for every way in which prompts share and do not fit."""

import dataclasses
import random

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from model.data.tokenizer import Tokenizer, load_tokenizer
from model.generation import choices
from model.generation.choices import ChoiceScorer, Opening
from model.generation.decode import pack
from model.network.decoder import Decoder
from model.network.shape import DecoderConfig, switches_of

CONFIG = DecoderConfig(
    vocab_size=61, n_layers=2, n_heads=4, n_kv_heads=2, d_model=32, d_head=8, d_ff=48, max_seq_len=24
)
GPT2 = dataclasses.replace(CONFIG, n_kv_heads=4, **switches_of("gpt2"))
WINDOW = dataclasses.replace(CONFIG, sliding_window=5, sliding_layers=(1,))
WORDS = ["kalo", "mitu", "resha", "beldor", "finka", "grahup", "jin", "lo", "tu", "sha"]
CHOICES = [" mitu resha", " kalo", "belfin jin"]


def text_of(n_words: int, seed: int) -> str:
    return " ".join(random.Random(seed).choices(WORDS, k=n_words))


PROMPTS = [f"Text: {text_of(n, n)}\nLabel:" for n in (3, 1, 9, 5, 5, 2)]
SHOTS = tuple(f"Text: {text_of(4, 90 + i)}\nLabel: mitu\n\n" for i in range(3))
OPENING = Opening(instruction="Which is it?\n\n", shots=SHOTS, lead="Text: ")


@pytest.fixture(scope="module")
def tokenizer(corpus) -> Tokenizer:
    return load_tokenizer(corpus / "tokenizer")


def model_of(cfg: DecoderConfig, tokenizer: Tokenizer, context: int = 400) -> Decoder:
    """Weights so large that the next token depends on all that was read."""
    generator = torch.Generator().manual_seed(0)
    model = Decoder(dataclasses.replace(cfg, vocab_size=tokenizer.vocab_size, max_seq_len=context)).eval()
    with torch.no_grad():
        for name, weight in model.named_parameters():
            is_scale = weight.ndim == 1 and name.endswith("weight")
            weight.copy_(torch.randn(weight.shape, generator=generator) * 0.3 + is_scale)
    return model


def plain(model: Decoder, tokenizer: Tokenizer, context: str, choice: str) -> float:
    """One pass over everything; the definition."""
    n_context = len(tokenizer.encode(context.rstrip()))
    whole = tokenizer.encode(context + choice)
    first, ids = min(n_context, len(whole) - 1), [*tokenizer.opening, *whole]
    excess = max(0, len(ids) - 1 - model.cfg.max_seq_len)
    ids = [*tokenizer.opening, *whole[excess:]]
    with torch.inference_mode():
        nats_TV = model(torch.tensor([ids[:-1]]))[0].double().log_softmax(-1)
    start = len(tokenizer.opening) + first - excess
    return float(sum(nats_TV[i - 1, ids[i]] for i in range(start, len(ids))))


def expected(model: Decoder, tokenizer: Tokenizer, opening: str, prompts=PROMPTS, choices=CHOICES) -> np.ndarray:
    return np.array([[plain(model, tokenizer, opening + p, choice) for choice in choices] for p in prompts])


@pytest.mark.parametrize("cfg", [CONFIG, GPT2, WINDOW], ids=["qwen3", "gpt2", "window"])
@pytest.mark.parametrize("opening", [Opening(), OPENING], ids=["none", "shots"])
@pytest.mark.parametrize("is_packed", [False, True], ids=["plain", "packed"])
def test_likelihoods_equal_the_full_pass(cfg, opening, is_packed, tokenizer):
    model = model_of(cfg, tokenizer)
    wanted = expected(model, tokenizer, opening.text(len(opening.shots)))
    scorer = ChoiceScorer(pack(model) if is_packed else model, tokenizer, CHOICES, opening)
    for prompts, of_prompts in ((PROMPTS, wanted), (PROMPTS[2:3], wanted[2:3])):  # the opening is read only once
        np.testing.assert_allclose(scorer.likelihoods(prompts).nats_NC, of_prompts, rtol=0, atol=1e-4)
    assert np.ptp(wanted) > 1


@settings(max_examples=10, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_likelihoods_of_any_decoder_equal_the_full_pass(data, decoder_configs, tokenizer):
    model = model_of(data.draw(decoder_configs), tokenizer)
    found = ChoiceScorer(model, tokenizer, CHOICES, OPENING).likelihoods(PROMPTS).nats_NC
    np.testing.assert_allclose(found, expected(model, tokenizer, OPENING.text(3)), rtol=0, atol=1e-4)


def test_size_of_a_pass_changes_nothing(tokenizer):
    model = model_of(CONFIG, tokenizer)
    of_size = [
        ChoiceScorer(model, tokenizer, CHOICES, OPENING, tokens_per_pass=n).likelihoods(PROMPTS).nats_NC
        for n in (1, 40, 10_000)
    ]
    for other in of_size[1:]:
        np.testing.assert_allclose(other, of_size[0], rtol=0, atol=1e-4)


def test_prompts_are_encoded_in_parts(tokenizer, monkeypatch):
    scorer = ChoiceScorer(model_of(CONFIG, tokenizer), tokenizer, CHOICES, OPENING)
    whole = scorer.likelihoods(PROMPTS)
    monkeypatch.setattr(choices, "PROMPTS_AT_ONCE", 4)
    found = scorer.likelihoods(PROMPTS)
    np.testing.assert_allclose(found.nats_NC, whole.nats_NC, rtol=0, atol=1e-4)
    assert found.tokens_NC.tolist() == whole.tokens_NC.tolist()


def test_white_space_at_the_end_of_a_prompt_belongs_to_the_choice(tokenizer):
    model = model_of(CONFIG, tokenizer)
    before = ChoiceScorer(model, tokenizer, [" kalo", " jin"]).likelihoods(["Label:"])
    after = ChoiceScorer(model, tokenizer, ["kalo", "jin"]).likelihoods(["Label: "])
    assert before.nats_NC.tolist() == after.nats_NC.tolist()
    assert before.tokens_NC.tolist() == [[len(tokenizer.encode(" kalo")), len(tokenizer.encode(" jin"))]]


def test_choices_that_change_the_tokens_of_the_prompt_are_scored_behind_its_own(tokenizer):
    """`ka` + `lo` may be one token that reaches over the border."""
    model = model_of(CONFIG, tokenizer)
    prompts, words = ["shabelka", "ka", "re sh"], ["lo", "a", "abel dor"]
    found = ChoiceScorer(model, tokenizer, words).likelihoods(prompts).nats_NC
    np.testing.assert_allclose(found, expected(model, tokenizer, "", prompts, words), rtol=0, atol=1e-4)
    borders = [
        len(tokenizer.encode(p + c)) - len(tokenizer.encode(p)) - len(tokenizer.encode(c))
        for p in prompts
        for c in words
    ]
    assert any(borders)


def test_tokenizer_without_opening_and_an_empty_prompt_begin_with_end_of_text(tokenizer):
    bare, model = dataclasses.replace(tokenizer, opening=()), model_of(CONFIG, tokenizer)
    found = ChoiceScorer(model, bare, CHOICES).likelihoods(["", "Label:"]).nats_NC
    wanted = [expected(model, tokenizer, "", [""])[0], expected(model, bare, "", ["Label:"])[0]]
    np.testing.assert_allclose(found, wanted, rtol=0, atol=1e-4)


def test_prompts_beyond_the_context_lose_shots_then_their_beginning(tokenizer):
    context = max(len(tokenizer.encode(OPENING.text(2) + PROMPTS[0] + choice)) for choice in CHOICES)
    model = model_of(CONFIG, tokenizer, context)
    prompts = [PROMPTS[0], f"Text: {text_of(context, 5)}\nLabel:"]
    scorer = ChoiceScorer(model, tokenizer, CHOICES, OPENING)
    found = scorer.likelihoods(prompts)
    assert scorer.n_beyond(prompts) == (2, 1)
    wanted = [expected(model, tokenizer, OPENING.text(2), prompts[:1])[0]]
    np.testing.assert_allclose(found.nats_NC[:1], wanted, rtol=0, atol=1e-4)


def test_a_cut_prompt_keeps_its_end(tokenizer):
    model = model_of(CONFIG, tokenizer, context=24)
    long, words = f"{text_of(60, 1)}\nLabel:", [" jin", " sha"]
    assert len({len(tokenizer.encode(long + choice)) for choice in words}) == 1
    prompts, scorer = [long, f"{text_of(40, 2)} {long}", "Label:"], ChoiceScorer(model, tokenizer, words)
    found = scorer.likelihoods(prompts)
    assert scorer.n_beyond(prompts) == (0, 2)
    wanted = expected(model, tokenizer, "", [long], words)[0]
    np.testing.assert_allclose(found.nats_NC[:2], [wanted, wanted], rtol=0, atol=1e-4)


def test_choice_longer_than_the_context_is_refused(tokenizer):
    model = model_of(CONFIG, tokenizer, context=24)
    with pytest.raises(ValueError, match=r"leaves no room for a prompt among 24 tokens; shorten it"):
        ChoiceScorer(model, tokenizer, [" kalo", text_of(60, 0)]).likelihoods(["Label:"])
    with pytest.raises(ValueError, match="not empty"):
        ChoiceScorer(model, tokenizer, [" kalo", ""])


def test_no_prompts_give_no_rows(tokenizer):
    assert ChoiceScorer(model_of(CONFIG, tokenizer), tokenizer, CHOICES).likelihoods([]).nats_NC.shape == (0, 3)
