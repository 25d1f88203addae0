"""Dumps of wikis: what a dump says about its wiki travels with its articles."""

import io
import json

import pytest

from pipeline.corpus.collect.wiki_dump import Article, read_articles

SITEINFO = (
    '<siteinfo><namespaces><namespace key="0"/><namespace key="6">Bildo</namespace>'
    '<namespace key="1">Diskuto</namespace><namespace key="x">Evil</namespace></namespaces></siteinfo>'
)


def articles(pages: str, siteinfo: str = SITEINFO) -> list[Article]:
    dump = f'<mediawiki xmlns="http://www.mediawiki.org/xml/export-0.11/">{siteinfo}{pages}</mediawiki>'
    found = list(read_articles(io.BytesIO(dump.encode()), 10**6))
    return [one for one in found if isinstance(one, Article)]


def page(title: str, text: str, ns: str = "<ns>0</ns>") -> str:
    return f"<page><title>{title}</title>{ns}<revision><text>{text}</text></revision></page>"


def test_wiki_dump_articles_carry_the_names_of_their_namespaces():
    """The names of files and categories were guessed in English for every dump (wtf_wikipedia#74)."""
    (article,) = articles(page("Mill", "It grinds."))
    assert json.loads(article.context or "") == {"namespaces": {"6": "Bildo", "1": "Diskuto"}}
    assert articles(page("Mill", "It grinds."), siteinfo="")[0].context is None


def test_wiki_dump_without_numbers_of_namespaces_is_judged_by_their_names():
    found = articles(page("Diskuto:Mill", "x", ns="") + page("CSI: Mill", "x", ns="") + page("Mill", "x", ns=""))
    assert [article.reason for article in found] == ["other_namespace", None, None]


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("#WEITERLEITUNG [[Mühle]]", "redirect"),
        ("#REDIRECTION: [[Moulin]]\n", "redirect"),
        ("#重定向 [[磨坊]]", "redirect"),
        ("#redirect [[Mill]]", "redirect"),
        ("#Mill [[stones]]\n#wheels", None),
        ("#Erstens [[Mühle]]", None),
    ],
)
def test_wiki_dump_redirects_in_any_language_are_no_articles(text, reason):
    assert articles(page("A", text))[0].reason == reason
