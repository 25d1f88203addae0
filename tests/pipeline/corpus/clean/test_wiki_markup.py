"""Articles of wikis: code as it is, links by the names of their wiki, and no hole where a template stood."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.corpus.clean.wiki_markup import wiki_text
from pipeline.corpus.clean.wiki_names import known

LISTING = '# weigh the sack\nfor sack in row:\n    * not a list\n        if sack[:2] == "a":  # two\n            pass'


def text_of(markup: str, context: str | None = None) -> str:
    return wiki_text(markup, context).text.strip()


@pytest.mark.parametrize(
    ("markup", "fence"),
    [
        (f'<syntaxhighlight lang="python">\n{LISTING}\n</syntaxhighlight>', "```python"),
        (f"<source lang=c++>\n{LISTING}\n</source>", "```c++"),
        (f"<pre>\n{LISTING}\n</pre>", "```"),
    ],
)
def test_wiki_code_listing_stays_as_it_is(markup, fence):
    """Rules for lists and spaces ran over the raw markup, so that comments became list items and indentation was lost
    (WikiExtractor#116)."""
    assert f"\n{fence}\n{LISTING}\n```\n" in text_of(f"Before.\n\n{markup}\n\nAfter.")


@pytest.mark.parametrize(
    ("markup", "text"),
    [
        ("Call <code>grind()</code> or <code>f(a, )</code>.", "Call grind() or f(a, )."),
        ("Type <nowiki>[[Mill]] ''x''  {{y}}</nowiki> there.", "Type [[Mill]] ''x''  {{y}} there."),
        ("A table:\n rye    1\n oats   22\nThat is all.", "A table:\n rye    1\n oats   22\nThat is all."),
        ("Use <syntaxhighlight lang=py inline>a  [ ]</syntaxhighlight> here.", "Use a  [ ] here."),
        ("The area is <math>\\pi r^2</math> there.", "The area is $\\pi r^2$ there."),
        ("So:\n:<math>{\\displaystyle a = b}</math>\nholds.", "So:\n$$a = b$$\nholds."),
        ("<ce>H2O</ce> is wet.", "$\\ce{H2O}$ is wet."),
        ("About 10<sup>6</sup> m<sup>2</sup>, H<sub>2</sub>O, ''x''<sub>i</sub>.", "About 10^6 m^2, H2O, x_i."),
    ],
)
def test_wiki_code_and_formulas_in_a_line_stay_as_they_are(markup, text):
    assert text_of(markup) == text


@pytest.mark.parametrize(
    ("markup", "text"),
    [
        ("She sang in [[DNA: The Opera]] twice.", "She sang in DNA: The Opera twice."),
        ("He wrote ''[[Re: Grain]]'' and [[Tom: A Life|a life]].", "He wrote Re: Grain and a life."),
        ("It lies in [[:de:Ulm|Ulm]], see [[:Category:Mills]].", "It lies in Ulm, see Category:Mills."),
        ("A mill.\n[[de:Muehle]]\n[[zh-min-nan:X]]\n", "A mill."),
        ("A mill.\n[[xx:Y]]\nMore prose.", "A mill.\n\nMore prose."),
        ("A mill.[[File:A.jpg|thumb|A [[mill]]]] It grinds.", "A mill. It grinds."),
        ("A mill.\n[[Grafik:A.svg|mini|Nord]]\nIt grinds.", "A mill.\n\nIt grinds."),
        ("A mill.\n[[Unbekannt:A.webp|rechts|Nord]]\nIt grinds.", "A mill.\n\nIt grinds."),
        ("Un moulin.\n[[Catégorie:Moulin]]\n[[Luokka:Mylly|x]]", "Un moulin."),
        ("Prose.\n\n[[Kategoriya-X:Mill]]\n[[Kategoriya-X:Grain]]\n", "Prose."),
    ],
)
def test_wiki_links_show_their_text_unless_they_are_files_categories_or_other_languages(markup, text):
    """Any short word and a colon was taken for another language, and only English names for files
    (wtf_wikipedia#74, mwparserfromhell#87)."""
    assert text_of(markup) == text


def test_wiki_links_are_read_by_the_names_of_their_dump():
    context = json.dumps({"namespaces": {"6": "Bildo", "14": "Temo", "100": "Portalo"}})
    markup = "Muelejo. [[Bildo:A|x]][[temo:B|y]]Vidu [[Portalo:Grano]]. Fino."
    assert text_of(markup, context) == "Muelejo. Vidu Portalo:Grano. Fino."
    for broken in ("", "[]", "{", '{"namespaces": 3}'):
        assert text_of("A [[Mill]].", broken) == "A Mill."


@pytest.mark.parametrize(
    ("markup", "text"),
    [
        ("It is {{cvt|35|m|ft|abbr=on}} high.", "It is 35 m high."),
        ("It is {{convert|5|ft|10|in|m}} high.", "It is 5 ft 10 in high."),
        ("From {{convert|3|to|7|km}} on.", "From 3 to 7 km on."),
        ("It has {{formatnum:12500}} sacks.", "It has 12500 sacks."),
        ("Built {{circa|1820}} by him.", "Built c. 1820 by him."),
        ("It weighs {{val|3.5|0.1|e=3|u=kg}} now.", "It weighs 3.5\u00b10.1\u00d710^3 kg now."),
        ("A {{frac|3|4}} and {{frac|2|1|3}} part.", "A 3/4 and 2 1/3 part."),
        ("Born {{birth date and age|1961|4|2}} there.", "Born 1961-04-02 there."),
        ("He spoke {{lang-nl|Zeeuws}} and {{lang|fr|picard}}.", "He spoke Zeeuws and picard."),
        ("By {{ill|Ana Roos|nl}}{{citation needed|date=May}}{{sfn|Roos|1990|p=3}}.", "By Ana Roos."),
        ("Le four cuit {{unité|300|kg}} par jour.", "Le four cuit 300 kg par jour."),
        ("It has {{some unknown|12|sails}} left.", "It has 12 sails left."),
        ("* {{flag|Peru}}\n* {{flag|Chile}}", "- Peru\n- Chile"),
        ("{{Short description|Mill}}{{Use dmy dates|date=May}}\nA mill.", "A mill."),
        ("{{Unknown box|12|sails}}\nA mill.", "A mill."),
        ("It cost ${{inflation|US|5|1861}} once.", "It cost $ once."),
    ],
)
def test_wiki_template_in_a_sentence_leaves_no_hole(markup, text):
    """Numbers and words vanished with their templates: "lies at above the sea" (WikiExtractor#378, KILT#46)."""
    assert text_of(markup) == text


def test_wiki_unknown_templates_inside_sentences_are_counted():
    markup = "{{Box|a={{inner|1}}}}\nIt has {{odd|1|b}}, {{odd|2}} and {{nowrap|three}}.\n{{Block|4}}"
    assert wiki_text(markup).n_unknown_templates == 2


@pytest.mark.parametrize(
    ("markup", "text"),
    [
        ("== Weblinks ==\n* [http://a.example A]\n", ""),
        ("== Irgendwas ==\n* [http://a.example A]\n* [http://b.example B]\n", ""),
        ("== Geschichte ==\nAlt.\n== Einzelnachweise ==\n<references />\n", "## Geschichte\n\nAlt."),
        ("== Leer ==\n=== Auch ===\n== Bau ==\n=== Rad ===\nRund.", "## Bau\n\n\n### Rad\n\nRund."),
        ("== Liens externes ==\nVoir ici.\n== Histoire ==\nVieux.", "## Histoire\n\nVieux."),
    ],
)
def test_wiki_section_without_anything_of_the_article_is_left_out_in_any_language(markup, text):
    """References and links kept their headings in dumps that are not English (pandoc#1068)."""
    shown = text_of(markup)
    assert [line for line in shown.splitlines() if line] == [line for line in text.splitlines() if line]


@pytest.mark.parametrize(
    ("markup", "text"),
    [
        (
            "It lies at {{coord|51|30|N|0|7|W|region:GB}} by a lake.",
            "It lies at 51\u00b030\u2032N, 0\u00b07\u2032W by a lake.",
        ),
        ("It lies at {{Coord|51.5|-0.12|display=inline}}.", "It lies at 51.5, -0.12."),
        ("It is old.{{coord|51|N|0|W|display=title}}", "It is old."),
        ("{{blockquote|text=It never stops.|author=Jan}}", "It never stops."),
    ],
)
def test_wiki_places_and_quotations_that_an_article_shows_leave_no_hole(markup, text):
    """A number or a sentence went with its template (WikiExtractor#378)."""
    assert text_of(markup) == text


def test_wiki_lists_are_numbered_as_shown():
    markup = "# one\n# two\n## deep\n# three\n\n# new\n* dot\n: in\n; term : meaning"
    assert text_of(markup).splitlines() == [
        *("1. one", "2. two", "1. deep", "3. three", "", "1. new", "- dot", "in", "term : meaning"),
    ]


def test_wiki_bold_text_that_never_ends_hides_no_heading():
    assert text_of("A '''mill.\n== References ==\nx") == "A mill."


def test_wiki_names_are_in_lower_case_and_known():
    assert {"datei", "fichier", "файл"} <= known("files")
    assert all(name == name.casefold() for kind in ("files", "categories", "sections") for name in known(kind))


@given(st.text("[]{}|=:'<>/#*; \nabFile", max_size=60))
def test_wiki_any_markup_gives_a_text(markup):
    assert isinstance(wiki_text(markup).text, str)
