import numpy as np
import pytest

from model.data.words import NO_PIECE, word_pieces, word_spans


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("Don't go to St. Mary's!", ["Don", "'", "t", "go", "to", "St", ".", "Mary", "'", "s", "!"]),
        ("@paul http://t.co/a1", ["@", "paul", "http", ":", "/", "/", "t", ".", "co", "/", "a1"]),
        ("東京へ行く", ["東", "京", "へ", "行", "く"]),
        ("서울에서 왔다", ["서", "울", "에", "서", "왔", "다"]),
        ("กรุงเทพ", ["ก", "รุ", "ง", "เ", "ท", "พ"]),
        ("cafe\u0301 Zu\u0308rich", ["cafe\u0301", "Zu\u0308rich"]),
        ("हिन्दी भाषा", ["हिन्दी", "भाषा"]),
        ("a\u00a0b\tc\nd", ["a", "b", "c", "d"]),
        ("x\x00y", ["x", "\x00", "y"]),
        ("", []),
        (" \n", []),
    ],
)
def test_words_are_runs_of_letters_or_single_signs(text, words):
    assert [text[start:end] for start, end in word_spans(text)] == words


def pieces_of(text: str, *spans: tuple[int, int]) -> list[str | None]:
    starts, ends = np.array(spans, np.int64).reshape(-1, 2).T
    numbers = word_pieces(word_spans(text), starts, ends)
    return [None if one == NO_PIECE else text[slice(*spans[one])] for one in numbers]


def test_a_word_is_represented_by_its_first_piece():
    assert pieces_of("Paris, France", (0, 3), (3, 5), (5, 6), (7, 13)) == ["Par", ",", "France"]


def test_a_piece_of_several_words_stands_for_the_one_that_has_most_of_it():
    assert pieces_of("@paul it's", (0, 4), (4, 5), (6, 8), (8, 10)) == [None, "@pau", "it", "'s", None]


def test_a_word_whose_first_piece_stands_for_another_is_represented_by_its_next():
    assert pieces_of("(Bob", (0, 2), (2, 4)) == ["(B", "ob"]


def test_control_characters_without_pieces_have_none():
    assert pieces_of("x\x00y", (0, 1), (2, 3)) == ["x", None, "y"]
    assert pieces_of("x") == [None]


def test_several_byte_tokens_of_a_character_count_once():
    assert pieces_of("\U0001f600 ok", (0, 1), (0, 1), (0, 1), (2, 4)) == ["\U0001f600", "ok"]
    assert word_pieces(word_spans("\U0001f600 ok"), *np.array([[0, 0, 0, 2], [1, 1, 1, 4]])).tolist() == [0, 3]
