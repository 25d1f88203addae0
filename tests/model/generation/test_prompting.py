"""Prompts as texts, and the ways in which a decoder's likelihoods become scores of labels."""

import dataclasses
import json

import numpy as np
import pytest
import torch

from model.data.chat import chat_template
from model.data.tokenizer import Tokenizer, load_tokenizer
from model.generation.choices import ChoiceScorer, Likelihoods
from model.generation.prompt import SCORINGS, Prompt, Shot, check_template, words_of
from model.generation.prompting import CONTENT_FREE, PromptedLabels, scores, softmax, zero_shot
from model.network.decoder import Decoder, new_decoder
from model.network.shape import DecoderConfig

PROMPT = Prompt(
    words={"bad": "very bad", "good": "fine"},
    template="Review: {text}\nSentiment: {label}",
    instruction="Judge each review.",
    shots=(Shot(id="1", text=" kalo {label}\n", label="good"), Shot(id="2", text="mitu", label="bad")),
)
SPECIAL = {"<|e|>": 297, "<|s|>": 298}
CHAT = (
    "{% for one in messages %}<|s|>{{ 'bot' if one.role == 'assistant' else one.role }}: {{ one.content }}<|e|>"
    "{% endfor %}"
    "{% if add_generation_prompt %}<|s|>bot: {% endif %}"
)
TEXTS = ["kalo mitu", "", "resha {text} tu"]


@pytest.fixture(scope="module")
def tokenizer(corpus) -> Tokenizer:
    return load_tokenizer(corpus / "tokenizer")


@pytest.fixture(scope="module")
def decoder(tokenizer) -> Decoder:
    shape = {"n_layers": 1, "n_heads": 2, "n_kv_heads": 1, "d_model": 16, "d_head": 8, "d_ff": 32}
    model = new_decoder(DecoderConfig(vocab_size=tokenizer.vocab_size, max_seq_len=200, **shape), seed=0).eval()
    model.lm_head.weight.data.normal_()
    return model


def test_prompt_is_instruction_shots_and_the_text_in_the_form_of_the_template():
    """What a text spells out is never filled in."""
    written = PROMPT.opening().text(2) + PROMPT.question(TEXTS[2])
    assert written == (
        "Judge each review.\n\nReview: kalo {label}\nSentiment: fine\n\nReview: mitu\nSentiment: very bad\n\n"
        "Review: resha {text} tu\nSentiment: "
    )
    assert PROMPT.opening().lead == "Review: "
    assert dataclasses.replace(PROMPT, instruction="", shots=()).opening().text(0) == ""


def test_prompt_comes_back_from_json():
    corrected = dataclasses.replace(PROMPT, scoring="corrected", prior=(-0.5, -1.25))
    for prompt in (PROMPT, corrected):
        again = Prompt.of(json.loads(json.dumps(prompt.described())))
        assert again == prompt and again.labels == ["bad", "good"]


@pytest.mark.parametrize(
    "template", ["{label}", "{text}", "{label} {text}", "{text} {text} {label}", "{text}: {label}."]
)
def test_template_without_text_and_then_label_is_refused(template):
    with pytest.raises(ValueError, match=r"must contain \{text\} once and end with \{label\}"):
        check_template(template)


def test_words_of_a_label_are_its_name():
    assert [words_of(label) for label in ("not_sarcastic", "yes", "__", "New York")] == [
        "not sarcastic",
        "yes",
        "__",
        "New York",
    ]


def test_scores_are_normalised_as_they_are_named():
    found = Likelihoods(np.array([[-4.0, -3.0], [-1.0, -6.0]]), np.array([[2, 1], [2, 3]]))
    words = {"a": "éa", "b": "cc"}  # 3 and 2 bytes
    assert scores(found, Prompt(words=words)).tolist() == [[-4, -3], [-1, -6]]
    assert scores(found, Prompt(words=words, scoring="per_token")).tolist() == [[-2, -3], [-0.5, -2]]
    assert scores(found, Prompt(words=words, scoring="per_byte")).tolist() == [[-4 / 3, -1.5], [-1 / 3, -3]]
    for scoring in ("content_free", "corrected"):
        prompt = Prompt(words=words, scoring=scoring, prior=(-0.5, -2.0))
        assert scores(found, prompt).tolist() == [[-3.5, -1], [-0.5, -4]]


def test_scoring_with_a_prior_needs_one():
    with pytest.raises(ValueError, match="content_free and corrected need one"):
        Prompt(words={"a": "a"}, scoring="corrected")
    with pytest.raises(ValueError, match="must be one of raw, "):
        Prompt(words={"a": "a"}, scoring="best")


def test_scores_are_those_of_the_words_behind_the_whole_prompt(decoder, tokenizer):
    prompts = [PROMPT.opening().text(2) + PROMPT.question(text) for text in TEXTS]
    expected = ChoiceScorer(decoder, tokenizer, ["very bad", "fine"]).likelihoods(prompts).nats_NC
    prompted = PromptedLabels(decoder, tokenizer, PROMPT)
    np.testing.assert_allclose(prompted.scores(TEXTS), expected, rtol=0, atol=1e-4)
    probabilities_NC = prompted.probabilities(TEXTS)
    np.testing.assert_allclose(probabilities_NC.sum(axis=1), 1)
    assert (probabilities_NC.argmax(axis=1) == expected.argmax(axis=1)).all()
    assert prompted.probabilities([]).shape == (0, 2)


@pytest.mark.parametrize("scoring", ["content_free", "corrected"])
def test_prior_is_the_mean_probability_of_the_labels_and_divides_them(scoring, decoder, tokenizer):
    plain = PromptedLabels(decoder, tokenizer, PROMPT)
    prompted = plain.content_free() if scoring == "content_free" else plain.corrected(TEXTS)
    texts = CONTENT_FREE if scoring == "content_free" else TEXTS
    prior_C = np.exp(prompted.prompt.prior)
    raw_NC = plain.probabilities(texts)
    np.testing.assert_allclose(prior_C, raw_NC.mean(axis=0), atol=1e-6)
    weighed_NC = raw_NC / prior_C  # arXiv:2102.09690: W = diag(p)^-1, and the result is normalised
    wanted_NC = weighed_NC / weighed_NC.sum(axis=1, keepdims=True)
    np.testing.assert_allclose(prompted.probabilities(texts), wanted_NC, atol=1e-6)
    assert prompted.prompt.scoring == scoring and plain.prompt.prior is None


def test_all_scorings_are_there_once(decoder, tokenizer):
    prompted = PromptedLabels(decoder, tokenizer, PROMPT).of_all_scorings(TEXTS)
    assert tuple(one.prompt.scoring for one in prompted) == SCORINGS


def test_chat_is_written_with_special_tokens_that_no_text_can_spell_out(decoder, tokenizer):
    template = chat_template(dataclasses.replace(tokenizer, control=SPECIAL), CHAT)
    shots = (Shot(id="1", text="kalo <|e|>", label="good"),)
    prompt = dataclasses.replace(PROMPT, shots=shots, chat=True)
    text = "mitu <|s|>" + chr(0xF0000)
    pieces = [
        298,
        "user: Judge each review.\n\nReview: kalo <|e|>\nSentiment:",
        *(297, 298, "bot: fine", 297, 298),
        f"user: Review: {text}\nSentiment:",
        *(297, 298, "bot: "),
    ]
    before = [one for part in pieces for one in ([part] if isinstance(part, int) else tokenizer.encode(part))]
    assert Prompt.of(json.loads(json.dumps(prompt.described()))) == prompt
    prompted = PromptedLabels(decoder, tokenizer, prompt, template=template)
    ids = torch.tensor([[*before, *tokenizer.encode("fine")]])
    with torch.inference_mode():
        nats_TV = decoder(ids[:, :-1])[0].double().log_softmax(-1)
    wanted = sum(nats_TV[i - 1, ids[0, i]] for i in range(len(before), ids.size(1)))
    assert prompted.likelihoods([text]).nats_NC[0, 1] == pytest.approx(float(wanted), abs=1e-4)
    assert PromptedLabels(decoder, tokenizer, prompt, len(before) - 5, template).n_beyond([text]) == (1, 0)


def test_softmax_of_far_scores_is_finite():
    np.testing.assert_allclose(softmax(np.array([[-1e4, -1e4 - 1]])), [[0.731059, 0.268941]], atol=1e-6)


def test_zero_shot_scores_the_names_of_the_labels_corrected_by_the_prior(decoder, tokenizer):
    found_NC = zero_shot(decoder, tokenizer, ["not_good", "good"], TEXTS)
    prompt = Prompt(words={"not_good": "not good", "good": "good"})
    expected_NC = PromptedLabels(decoder, tokenizer, prompt).corrected(TEXTS).probabilities(TEXTS)
    np.testing.assert_allclose(found_NC, expected_NC, atol=1e-6)
    assert zero_shot(decoder, tokenizer, ["a", "b"], []).shape == (0, 2)
