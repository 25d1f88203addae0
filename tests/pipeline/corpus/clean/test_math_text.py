"""The notation of formulas: what stands above, below, raised and lowered says the same in one line."""

import pytest

from pipeline.corpus.clean.math_text import (
    accent,
    below,
    binomial,
    equations,
    fraction,
    is_aligned,
    latex,
    matrix,
    power,
    prescripts,
    root,
    scripts,
    sequence,
    subscript,
    symbols,
)


@pytest.mark.parametrize(
    ("written", "expected"),
    [
        (fraction("v", "2"), "v/2"),
        (fraction("x+1", "2"), "(x+1)/2"),
        (fraction("a", "2b"), "a/(2b)"),
        (fraction("x_1", "x_2^3"), "x_1/x_2^3"),
        (fraction("(a+b)", "c"), "(a+b)/c"),
        (fraction("(a)(b)", "c"), "((a)(b))/c"),
        (fraction("1/2", "3"), "(1/2)/3"),
        (power("v", "2"), "v^2"),
        (power("10", "-4"), "10^(-4)"),
        (power("x+1", "2"), "(x+1)^2"),
        (power("x^2", "3"), "(x^2)^3"),
        (power("a b", "2"), "(a b)^2"),
        (power("2x", "2"), "(2x)^2"),
        (power("f", "\u2032\u2032"), "f''"),
        (power("90", "\u2218"), "90\u00b0"),
        (subscript("x", "i"), "x_i"),
        (subscript("x", "i+1"), "x_(i+1)"),
        (scripts("x", "1", "2"), "x_1^2"),
        (scripts("sum", "i=1", "n"), "sum_(i=1)^n"),
        (prescripts("C", "6", "14"), "{}_6^14 C"),
        (root("3"), "sqrt(3)"),
        (root("x+1", "3"), "root(3)(x+1)"),
        (power(root("x", "3"), "2"), "root(3)(x)^2"),
        (accent("x", "^"), "hat(x)"),
        (accent("x", "a"), "overset(a)(x)"),
        (below("x", "\u00af"), "underline(x)"),
        (matrix([["a", "b"], ["c", "d"]]), "[[a, b], [c, d]]"),
        (binomial("n", "k"), "binom(n, k)"),
        (equations([["x", "=1"], ["y", "=2"]]), "x=1; y=2"),
        (symbols("\U0001d465 \u2212 1"), "x - 1"),
        (symbols("\u2211"), "sum"),
    ],
)
def test_math_text_formula_in_one_line_says_the_same(written, expected):
    assert written == expected


@pytest.mark.parametrize(
    ("pieces", "expected"),
    [
        (["v", "=", "omega", "r"], "v=omega r"),
        (["2", "x"], "2x"),
        (["x^2", "y"], "x^2 y"),
        (["2", "3"], "2 3"),
        (["f", "(", "x", ",", "y", ")"], "f(x, y)"),
        (["v/2", "r"], "(v/2) r"),
        (["2", "1/2"], "2 1/2"),
        (["P", "=", "v/2"], "P=v/2"),
        (["(", "v/2", ")", "r"], "(v/2)r"),
        (["sum_(i=1)^n", "x_i"], "sum_(i=1)^n x_i"),
        (["a", "/", "b"], "a/b"),
    ],
)
def test_math_text_parts_of_a_product_do_not_run_together(pieces, expected):
    assert sequence(pieces) == expected


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        (r"{\displaystyle r}", "$r$"),
        (r"\(x^2\)", "$x^2$"),
        (r"$$a$$", "$a$"),
        (r"\frac{v}{2}", r"$\frac{v}{2}$"),
        (r"{a}+{b}", r"${a}+{b}$"),
        ("% <![CDATA[\na < b %]]>", "$a < b$"),
        ("  ", ""),
    ],
)
def test_math_text_latex_loses_only_what_a_site_adds(source, expected):
    assert latex(source) == expected
    assert latex(source, display=True) == (expected and f"${expected}$")


def test_math_text_sides_of_equations_are_no_matrix():
    assert is_aligned([["x", "=1"], ["y", "=2"]]) and is_aligned([["x=1"], ["y=2"]])
    assert not is_aligned([["a", "b"], ["c", "d"]])
