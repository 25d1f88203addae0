"""Raised and lowered text on one line: powers, indices, footnotes, and what needs no sign."""

import lxml.html
import pytest

from pipeline.corpus.clean.html_superscripts import write_superscripts


def written(body: str) -> str:
    tree = lxml.html.document_fromstring(f"<html><body><p>{body}</p></body></html>")
    write_superscripts(tree)
    return " ".join(tree.text_content().split())


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        ("about 10<sup>6</sup> grains", "about 10^6 grains"),
        ("10<sup>\u22124</sup> m", "10^(-4) m"),
        ("<i>v</i><sup>2</sup>", "v^2"),
        ("75 m<sup>2</sup> of floor", "75 m^2 of floor"),
        ("9.81 m/s<sup>2</sup>", "9.81 m/s^2"),
        ("120 \u043a\u043c<sup>2</sup>", "120 \u043a\u043c^2"),
        ("s<sup>-1</sup>", "s^(-1)"),
        ("E = mc<sup>2</sup>", "E = mc^2"),
        ("(a+b)<sup>2</sup>", "(a+b)^2"),
        ("2<sup>n</sup>, 2<sup>n+1</sup>", "2^n, 2^(n+1)"),
        ("<var>x</var><sub>i</sub><sup>2</sup>", "x_i^2"),
        ("x<sub>i+1</sub>", "x_(i+1)"),
        ("T<sub>max</sub>", "T_max"),
        ("log<sub>2</sub> 8", "log_2 8"),
        ("Ca<sup>2+</sup> ions", "Ca^(2+) ions"),
        ("e<sup>x<sup>2</sup></sup>", "e^(x^2)"),
    ],
)
def test_powers_and_indices_keep_their_sense(body, expected):
    """10<sup>6</sup> was read as 106."""
    assert written(body) == expected


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        ("H<sub>2</sub>O and Fe<sub>2</sub>O<sub>3</sub>", "H2O and Fe2O3"),
        ("Ca(OH)<sub>2</sub>", "Ca(OH)2"),
        ("the 1<sup>st</sup> and 2<sup>nd</sup> stone", "the 1st and 2nd stone"),
        ("au XIX<sup>e</sup> si\u00e8cle, M<sup>me</sup> Moulin", "au XIXe si\u00e8cle, Mme Moulin"),
        ("Grind<sup>TM</sup>, Mill<sup>\u00ae</sup>", "GrindTM, Mill\u00ae"),
        ("<sup>14</sup>C", "14C"),
        ("2<sup>1</sup>/<sub>2</sub> sacks", "2 1/2 sacks"),
        ("<sup>3</sup>\u2044<sub>4</sub>", "3\u20444"),
        ("$12<sup>99</sup>", "$12.99"),
        ("L<sup>A</sup>T<sub>E</sub>X", "LATEX"),
        (
            "<sup>a raised sentence that is long enough to be one</sup>",
            "a raised sentence that is long enough to be one",
        ),
    ],
)
def test_raised_text_that_reads_alike_gets_no_sign(body, expected):
    assert written(body) == expected


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        ('the mill<sup><a href="#n1">1</a></sup> turns', "the mill[1] turns"),
        ('in 10<sup id="r2"><a href="#n2">2</a></sup> years', "in 10[2] years"),
        ('rye<sup class="reference">[3]</sup>', "rye[3]"),
        ('rye<a href="#n4"><sup>4</sup></a>', "rye[4]"),
        ('<a href="/area">40 m<sup>2</sup></a>', "40 m^2"),
        ("the mill.<sup>5</sup> It", "the mill.[5] It"),
        ("the mill<sup>6</sup> It", "the mill[6] It"),
        ("in 1998<sup>7</sup>", "in 1998[7]"),
        ("the mill<sup>1,2</sup>", "the mill[1,2]"),
        ("the mill<sup>*</sup>", "the mill*"),
    ],
)
def test_marks_of_footnotes_are_no_powers(body, expected):
    assert written(body) == expected
