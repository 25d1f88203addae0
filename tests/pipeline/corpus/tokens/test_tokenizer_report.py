"""The report on a tokenizer: its numbers are those that one can count by hand."""

import pytest

from model.data.tokenizer import tokenizer_of
from model.data.vocabularies import END_OF_TEXT, TRAINED_PATTERNS
from pipeline.corpus.tokens.tokenizer_report import (
    Sampled,
    kind_of,
    measured,
    report_markdown,
    report_measures,
    shown,
)


def of_tokens(*tokens):
    ranks = {token: rank for rank, token in enumerate([*(bytes([i]) for i in range(256)), *tokens])}
    return tokenizer_of(ranks, TRAINED_PATTERNS["gpt-2"], {END_OF_TEXT: len(ranks)}, len(ranks) + 1)


DOCUMENTS = [
    Sampled("web", "en", True, "ab ab"),  # 5 bytes; 3 tokens with ab
    Sampled("web", "de", False, "ab"),  # 1 token
    Sampled("books", "en", False, "\xe4"),  # 2 bytes, 2 tokens
    Sampled("empty", "en", False, ""),
]


def test_measured_bytes_a_token_by_source_and_language():
    numbers = measured({"this": of_tokens(b"ab", b"xy"), "bytes": of_tokens()}, DOCUMENTS)
    assert (numbers["documents"], numbers["bytes"]) == (4, 9)
    by_source = {row["name"]: row for row in numbers["sources"]}
    assert by_source["web"]["tokens"] == {"this": 4, "bytes": 7}
    assert by_source["web"]["bytes_per_token"] == {"this": 7 / 4, "bytes": 1.0}
    assert by_source["web"]["held_out_bytes"] == 5
    assert by_source["empty"]["bytes_per_token"] == {"this": None, "bytes": None}
    by_language = {row["name"]: row["bytes_per_token"]["this"] for row in numbers["languages"]}
    assert by_language == {"de": 2.0, "en": 7 / 5}


def test_measured_unused_and_longest_tokens():
    numbers = measured({"this": of_tokens(b"ab", b"xy", b"xyz")}, DOCUMENTS)["vocabularies"]["this"]
    assert (numbers["tokens"], numbers["vocab_size"]) == (259, 260)
    assert numbers["single_bytes_unused"] == 256 - 3  # a space and two parts of a character
    assert numbers["first_unused"] == ["`xy`", "`xyz`"] and numbers["unused"] == 255
    assert numbers["longest"][:2] == [["`xyz`", 3, 0], ["`ab`", 2, 3]]
    assert sum(numbers["kinds"].values()) == 259 and sum(numbers["uses_by_kind"].values()) == 6


@pytest.mark.parametrize(
    ("token", "kind"),
    [
        (b"the", "a word or a part of one"),
        (" \xe9t\xe9".encode(), "a word with the space before it"),
        (b"42", "digits"),
        (b" 42", "digits"),
        (b"==", "signs"),
        (b" (", "signs"),
        (b" \n\t", "white space"),
        (b"'s", "several of these"),
        (b"\xc3", "a part of a character"),
        ("\u4e16".encode(), "a word or a part of one"),
    ],
)
def test_kind_of_tokens(token, kind):
    assert kind_of(token) == kind


@pytest.mark.parametrize(
    ("token", "text"),
    [
        (b" a", "`\u2423a`"),
        (b"a|b`", "`a\\x7cb\\x60`"),
        (b"\n\x1b[0m", "`\\n\\x1b[0m`"),
        (b"\xff\xc3", "`\\xff\\xc3`"),
        ("\u202e\u4e16".encode(), "`\\u202e\u4e16`"),
        (b"<script>", "`<script>`"),
    ],
)
def test_shown_tokens_cannot_change_the_page(token, text):
    assert shown(token) == text


def test_report_markdown_has_a_column_a_tokenizer_and_says_what_is_missing():
    numbers = measured({"this": of_tokens(b"ab"), "bytes": of_tokens()}, DOCUMENTS)
    text = report_markdown(numbers, {"gpt2": "no network"})
    assert "| web | 2 | 0.00 | 71% | 1.75 | 1.00 |" in text
    assert "| empty | 1 | 0.00 | 0% | - | - |" in text
    assert "gpt2 is left out of the comparison: no network" in text
    tables = [line.count("|") for line in text.splitlines() if line.startswith(("| web", "| source"))]
    assert set(tables) == {7}


def test_report_measures_name_the_judged_tokenizer_and_the_others():
    numbers = measured({"this": of_tokens(b"ab"), "bytes": of_tokens()}, DOCUMENTS)
    assert report_measures(numbers) == {
        "unused_tokens": 253,
        "bytes_per_token": 9 / 6,
        "bytes_per_token_bytes": 1.0,
        "bytes_per_token_of_books": 1.0,
        "bytes_per_token_of_web": 7 / 4,
    }


def test_report_without_documents_says_so():
    numbers = measured({"this": of_tokens()}, [])
    assert "nothing to measure" in report_markdown(numbers, {})
    assert report_measures(numbers) == {}
