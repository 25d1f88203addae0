"""Files of columns: which scheme their tags follow, and spans equal to those that seqeval finds in the same tags."""

import random

import pytest
from seqeval.metrics.sequence_labeling import get_entities

from pipeline.corpus.examples.conll import Columns, conll_records, detected

SENTENCES = [
    (
        ["U.N.", "official", "Rolf", "Ekeus", "heads", "for", "Baghdad", "."],
        [(0, 0, "ORG"), (2, 3, "PER"), (6, 6, "LOC")],
    ),
    (["Ann", "Bob", "Carl", "left"], [(0, 0, "PER"), (1, 2, "PER")]),
    (["Nothing", "here"], []),
]


def tags(n: int, entities, scheme: str) -> list[str]:
    written = ["O"] * n
    before = None
    for first, last, label in entities:
        is_adjacent = before == (first - 1, label)
        for place in range(first, last + 1):
            prefix = "B" if place == first else "I"
            if scheme == "iob1" and not is_adjacent:
                prefix = "I"
            if scheme in ("bilou", "iobes"):
                last_letter, only = ("L", "U") if scheme == "bilou" else ("E", "S")
                prefix = only if first == last else last_letter if place == last else prefix
            written[place] = label if scheme == "io" else f"{prefix}-{label}"
        before = last, label
    return written


def file_of(scheme: str, separator: str = "\t", blank: str = "") -> bytes:
    lines = []
    for tokens, entities in SENTENCES:
        written = tags(len(tokens), entities, scheme)
        lines += [f"{token}{separator}{tag}" for token, tag in zip(tokens, written, strict=True)] + [blank]
    return "\n".join(lines).encode()


def read(content: bytes | str, **columns) -> list[dict]:
    content = content.encode() if isinstance(content, str) else content
    return list(conll_records("r.conll", content, Columns(**columns)))


def shown(record: dict) -> list[tuple[str, str]]:
    return [(record["text"][one["start"] : one["end"]], one["label"]) for one in record["entities"]]


@pytest.mark.parametrize("separator", ["\t", " ", "   "])
@pytest.mark.parametrize(
    ("scheme", "read_as"), [("bio", "bio"), ("iob1", "iob1"), ("bilou", "iobes"), ("iobes", "iobes")]
)
def test_every_scheme_is_told_apart_and_gives_the_same_spans(scheme, read_as, separator):
    content = file_of(scheme, separator, blank="\t" if separator == "\t" else "")
    assert detected("r.conll", content, Columns())[0] == read_as
    records = read(content)
    assert [record["text"] for record in records] == [" ".join(tokens) for tokens, _ in SENTENCES]
    assert [shown(record) for record in records] == [
        [("U.N.", "ORG"), ("Rolf Ekeus", "PER"), ("Baghdad", "LOC")],
        [("Ann", "PER"), ("Bob Carl", "PER")],
        [],
    ]
    assert not any(one["is_mended"] for record in records for one in record["entities"])


def test_labels_alone_join_neighbours_of_one_label():
    records = read(file_of("io"))
    assert shown(records[0]) == [("U.N.", "ORG"), ("Rolf Ekeus", "PER"), ("Baghdad", "LOC")]
    assert shown(records[1]) == [("Ann Bob Carl", "PER")], "a scheme without B cannot divide them"
    named = read("x\tE-mail\ny\tE-mail\nz\tO\n", scheme="io")
    assert shown(named[0]) == [("x y", "E-mail")], "the whole tag is the label"


def test_random_tags_give_the_spans_of_seqeval():
    rng = random.Random(0)
    for _ in range(300):
        written = [
            tag if tag == "O" else f"{tag}-{rng.choice('ab')}" for tag in rng.choices("OBIES", k=rng.randint(1, 12))
        ]
        content = "\n".join(f"w\t{tag}" for tag in written)
        expected = [(label, 2 * first, 2 * last + 1) for label, first, last in get_entities(written)]
        records = read(content)
        assert [(one["label"], one["start"], one["end"]) for one in records[0]["entities"]] == expected, written


def test_broken_tags_are_mended_and_marked():
    content = file_of("bio") + b"\n\nParis\tI-LOC\nand\tO\nRome\tB-LOC\n"
    entities = read(content)[-1]["entities"]
    assert [(one["start"], one["end"], one["is_mended"]) for one in entities] == [(0, 5, True), (10, 14, False)]
    assert [one["is_mended"] for one in read(content, scheme="iob1")[-1]["entities"]] == [False, True]


def test_columns_are_chosen_by_number():
    content = "1 Rome NNP I-NP B-LOC\n2 fell VBD O O\n"
    assert read(content, token=2)[0]["text"] == "Rome fell"
    assert shown(read(content, token=2)[0]) == [("Rome", "LOC")]
    assert shown(read(content, token=2, tag=4)[0]) == [("Rome", "NP")]
    assert shown(read(content, token=-4, tag=5)[0]) == [("Rome", "LOC")]


def test_comments_are_left_out_and_hashtags_kept():
    content = (
        "# id = 7\n# text of it\n#Rome\tB-LOC\n#\tO\n\n#begin document (x); part 000\nParis B-LOC\n#end document\n"
    )
    assert [record["text"] for record in read(content)] == ["#Rome #", "Paris"]


def test_documents_are_divided_by_their_lines_and_joined_if_wanted():
    content = "-DOCSTART- -X- O O\n\nAnn B-PER\nleft O\n\nBob B-PER\n\n-DOCSTART- -X- O O\n\nRome B-LOC\n"
    assert [(record["text"], record["document"]) for record in read(content)] == [
        ("Ann left", 1),
        ("Bob", 1),
        ("Rome", 2),
    ]
    joined = read(content, text_of="document")
    assert [record["text"] for record in joined] == ["Ann left\nBob", "Rome"]
    assert shown(joined[0]) == [("Ann", "PER"), ("Bob", "PER")]
    with pytest.raises(ValueError, match="no line -DOCSTART- begins one"):
        read("Ann B-PER\n", text_of="document")


@pytest.mark.parametrize(
    ("line", "fault"), [("alone", "no token and tag"), ("x\tPER", "is no tag of the scheme bio"), ("x\t_", "'_'")]
)
def test_a_sentence_with_an_unreadable_line_comes_with_its_fault(line, fault):
    records = read(f"Ann\tB-PER\nis\tO\n\n{line}\nRome\tB-LOC\n\nBob\tB-PER\n")
    assert [isinstance(record["entities"], str) for record in records] == [False, True, False]
    assert fault in records[1]["entities"]


def test_tokens_without_visible_characters_are_left_out():
    assert shown(read("New\tB-LOC\n\u00a0\tI-LOC\n\tI-LOC\nYork\tI-LOC\n")[0]) == [("New York", "LOC")]


@pytest.mark.parametrize("line_end", ["\n", "\r\n", "\r"])
def test_line_ends_of_every_system_end_lines(line_end):
    """A file of old Macintosh line ends was one sentence of one token."""
    rows = read(f"Ann\tB-X{line_end}ran\tO{line_end}{line_end}Bob\tB-X{line_end}")
    assert [shown(one) for one in rows] == [[("Ann", "X")], [("Bob", "X")]]


def test_no_other_signs_end_lines_and_bytes_that_are_no_text_are_named():
    assert shown(read("a\u2028b\tB-X\r\nc\tO\r\n")[0]) == [("a\u2028b", "X")]
    with pytest.raises(ValueError, match="line 2: byte 6 is not UTF-8"):
        read(b"Ann\tO\n\xff\tO\n")
