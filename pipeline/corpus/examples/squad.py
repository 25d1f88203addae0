"""Reads questions from a JSON file in SQuAD's form (arXiv:1606.05250; with unanswerable questions arXiv:1806.03822).

In: name and content of the file: an object whose `data` is a list of articles, each with `paragraphs`, each with a
`context` and its `qas`. Out: one record per question with question, context, answers, title and id, as in a flat
file; what is no paragraph or question comes out as its text.
"""

import json
from collections.abc import Iterator
from typing import Any

SHOWN_CHARACTERS = 200  # of what cannot be read
Record = dict[str, Any]


def is_squad(name: str, content: bytes) -> bool:
    """Whether this is a .json file of articles with paragraphs, and no list of flat objects."""
    return name.lower().endswith(".json") and b'"paragraphs"' in content


def squad_records(name: str, content: bytes) -> Iterator[Record | str]:
    """Raises ValueError if the file is not JSON in UTF-8 or has no list of articles."""
    try:
        found = json.loads(content.decode("utf-8-sig"))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{name}: not JSON in UTF-8 ({error})") from error
    articles = found.get("data") if isinstance(found, dict) else None
    if not isinstance(articles, list):
        has = f"an object with {', '.join(sorted(found)[:10]) or 'no keys'}" if isinstance(found, dict) else "a value"
        raise ValueError(f"{name}: got {has}, expected SQuAD's form, an object whose `data` is a list of articles")
    return _questions(articles)


def _questions(articles: list[Any]) -> Iterator[Record | str]:
    for article in articles:
        paragraphs = _list(article, "paragraphs")
        if paragraphs is None:
            yield _shown(article)
        for paragraph in paragraphs or ():
            asked = _list(paragraph, "qas")
            if asked is None:
                yield _shown(paragraph)
            for one in asked or ():
                yield _record(one, paragraph, article) if isinstance(one, dict) else _shown(one)


def _record(question: Record, paragraph: Record, article: Record) -> Record:
    own = {"title": article.get("title"), "context": paragraph.get("context")} | question
    return own | {"answers": []} if question.get("is_impossible") is True else own


def _list(value: Any, key: str) -> list[Any] | None:
    found = value.get(key) if isinstance(value, dict) else None
    return found if isinstance(found, list) else None


def _shown(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False)[:SHOWN_CHARACTERS]
