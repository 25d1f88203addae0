from model.data.spans import Span
from pipeline.evaluation.gazetteer import Gazetteer


def listed(*sentences: tuple[str, list[tuple[str, str]]]) -> Gazetteer:
    texts = [text for text, _ in sentences]
    entities = [
        [Span(text.index(one), text.index(one) + len(one), label) for one, label in of] for text, of in sentences
    ]
    return Gazetteer(texts, entities)


def found(gazetteer: Gazetteer, text: str) -> list[tuple[str, str]]:
    return [(text[one.start : one.end], one.label) for one in gazetteer.find(text)]


def test_the_longest_run_of_words_is_found_first():
    gazetteer = listed(("New York", [("New York", "loc")]), ("New York Times", [("New York Times", "org")]))
    assert found(gazetteer, "The New York Times of New  York, New Jersey") == [
        ("New York Times", "org"),
        ("New  York", "loc"),
    ]


def test_the_most_frequent_label_wins_and_the_first_of_equal_ones():
    twice = [("Paris", [("Paris", "per")])] * 2
    assert found(listed(("Paris", [("Paris", "loc")]), *twice), "Paris") == [("Paris", "per")]
    assert found(listed(("Paris", [("Paris", "loc")]), twice[0]), "Paris") == [("Paris", "loc")]


def test_words_that_are_mostly_no_entity_are_not_listed():
    gazetteer = listed(("May left", [("May", "per")]), ("in May", []), ("last May", []))
    assert found(gazetteer, "May") == []


def test_nothing_is_found_without_entities():
    assert found(listed(("a b", [])), "a b") == []
    assert found(listed(("Ann", [("Ann", "per")])), "") == []
