"""Formulas in the markup of the web: each once, in LaTeX if the page has it, otherwise in one line."""

import pytest

from pipeline.corpus.clean.html_text import html_text
from pipeline.corpus.clean.xhtml_text import xhtml_text

HALF = "<mrow><mi>P</mi><mo>=</mo><mfrac><mi>v</mi><mn>2</mn></mfrac></mrow>"
SOURCE = r"P=\frac{v}{2}"
NOTE = f'<annotation encoding="application/x-tex">{SOURCE}</annotation>'
MATH = f'<math xmlns="http://www.w3.org/1998/Math/MathML"><semantics>{HALF}{NOTE}</semantics></math>'
PLAIN = f"<math>{HALF}</math>"
GLYPHS = (
    '<span class="katex-html" aria-hidden="true"><span class="mord">P</span><span class="mrel">=</span>'
    '<span class="mfrac"><span class="vlist"><span>2</span><span>v</span></span></span></span>'
)
LATEX = f"${SOURCE}$"
LINE = "P=v/2"
FORMS = {
    "MathML with annotation": (MATH, LATEX),
    "MathML with alternative text": (f'<math alttext="{SOURCE}">{HALF}</math>', LATEX),
    "MathML described in words": (f'<math alttext="P is half of v">{HALF}</math>', LINE),
    "MathML alone": (PLAIN, LINE),
    "MathML of EPUB": (f"<m:math xmlns:m='x'>{HALF.replace('<m', '<m:m').replace('</m', '</m:m')}</m:math>", LINE),
    "MediaWiki": (
        f'<span class="mwe-math-element"><span class="mwe-math-mathml-inline" style="display: none;">{MATH}</span>'
        f'<img class="mwe-math-fallback-image-inline" alt="{{\\displaystyle {SOURCE}}}" src="x.svg"/></span>',
        LATEX,
    ),
    "MediaWiki, image alone": (f'<img class="mwe-math-fallback-image-inline" alt="{SOURCE}" src="x.svg"/>', LATEX),
    "image beside MathML": (f'{MATH}<img class="tex" alt="{SOURCE}" src="x.png"/>', LATEX),
    "KaTeX": (f'<span class="katex"><span class="katex-mathml">{MATH}</span>{GLYPHS}</span>', LATEX),
    "KaTeX, glyphs alone": (f'<span class="katex">{GLYPHS}</span>', "[formula]"),
    "MathJax 2, not run": (f'<script type="math/tex">{SOURCE}</script>', LATEX),
    "MathJax 2, run": (
        '<span class="MathJax_Preview">P</span><span class="MathJax" data-mathml="x"><nobr>P=v2</nobr>'
        f'<span class="MJX_Assistive_MathML">{PLAIN}</span></span><script type="math/tex">{SOURCE}</script>',
        LATEX,
    ),
    "MathJax 2, saved without its script": (
        f"<span class=\"MathJax\" data-mathml='{PLAIN.replace('<', '&lt;')}'><nobr>P=v2</nobr></span>",
        LINE,
    ),
    "MathJax 3": (
        '<mjx-container class="MathJax" jax="CHTML"><mjx-math aria-hidden="true"><mjx-mfrac></mjx-mfrac></mjx-math>'
        f"<mjx-assistive-mml>{PLAIN}</mjx-assistive-mml></mjx-container>",
        LINE,
    ),
    "MathJax 4": (f'<mjx-container class="MathJax"><math data-latex="{SOURCE}">{HALF}</math></mjx-container>', LATEX),
    "image of WordPress": (f'<img class="latex" src="https://s0.example/latex.php?x" alt="{SOURCE}"/>', LATEX),
    "image by address": (f'<img src="https://latex.codecogs.com/png.image?x" alt="{SOURCE}"/>', LATEX),
    "image whose address is its only source": (
        '<img src="https://latex.codecogs.com/gif.latex?%5Cdpi%7B150%7D&space;P=%5Cfrac%7Bv%7D%7B2%7D"/>',
        LATEX,
    ),
    "image of a site for questions without alternative text": (
        '<img src="https://q.example/equation?tex=P%3D%5Cfrac%7Bv%7D%7B2%7D"/>',
        LATEX,
    ),
    "image of a blog without alternative text": (
        '<img src="https://s0.example/latex.php?latex=P%3D%5Cfrac%7Bv%7D%7B2%7D&amp;bg=ffffff"/>',
        LATEX,
    ),
    "attribute": (f'<span class="ztext-math" data-tex="{SOURCE}"><span>P</span><span>v2</span></span>', LATEX),
    "bare LaTeX of pandoc": (f'<span class="math inline">{SOURCE}</span>', LATEX),
    "delimited text": (f'<span class="math inline">\\({SOURCE}\\)</span>', f"\\({SOURCE}\\)"),
    "text of StackExchange": (f'<span class="math-container">${SOURCE}$</span>', LATEX),
}
PROSE = (
    "The miller says that the power of the wheel, which is {} per square metre of stone, is enough for a dry summer, "
    "because the river still turns the wheel when other mills have long been standing still for want of water."
)


def page(formula: str) -> str:
    return f"<html><body><h1>The power</h1><p>{PROSE.format(formula)}</p><p>{PROSE.format('small')}</p></body></html>"


@pytest.mark.parametrize("name", FORMS)
def test_formula_in_a_sentence_is_written_once(name):
    """MathML was dropped, and KaTeX was flattened to P=v2 or P=2v: adbar/trafilatura#792, adbar/trafilatura#158."""
    markup, formula = FORMS[name]
    expected = f"# The power\n\n{PROSE.format(formula)}\n\n{PROSE.format('small')}"
    assert html_text(page(markup)).text == expected
    assert xhtml_text(page(markup))[1] == expected


@pytest.mark.parametrize(
    "markup",
    [
        f'<math display="block" alttext="{SOURCE}">{HALF}</math>',
        f'<span class="katex-display"><span class="katex"><span>{MATH}</span>{GLYPHS}</span></span>',
        f'<script type="math/tex; mode=display">% <![CDATA[\n{SOURCE} %]]></script>',
        f'<div class="MathJax_Display"><span class="MathJax">P=v2</span></div>'
        f'<script type="math/tex; mode=display">{SOURCE}</script>',
        f'<mjx-container display="true"><math data-latex="{SOURCE}">{HALF}</math></mjx-container>',
        f'<div class="mwe-math-element mwe-math-element-block">{MATH}<img alt="{SOURCE}"/></div>',
        f'<span class="math display">{SOURCE}</span>',
        f'<table class="ltx_equation ltx_eqn_table"><tbody><tr class="ltx_eqn_row"><td class="ltx_eqn_cell"></td>'
        f'<td class="ltx_eqn_cell"><math display="block" alttext="{SOURCE}">{HALF}</math></td></tr></tbody></table>',
    ],
)
def test_formula_between_paragraphs_has_its_own_line(markup):
    body = f"<h1>The power</h1><p>{PROSE.format('this:')}</p>{markup}<p>{PROSE.format('small')}</p>"
    expected = f"# The power\n\n{PROSE.format('this:')}\n\n$${SOURCE}$$\n\n{PROSE.format('small')}"
    assert html_text(f"<body>{body}</body>").text == expected
    inside = f"<h1>The power</h1><p>{PROSE.format('this:')}{markup}</p><p>{PROSE.format('small')}</p>"
    assert xhtml_text(f"<body>{inside}</body>")[1] == expected


def test_formula_in_a_heading_and_a_cell_stays_there():
    table = f"<table><tr><th>stone</th><th>loss</th></tr><tr><td>rye</td><td>{MATH}</td></tr></table>"
    heading = f"<h2>Why {MATH.replace('<math', '<math display=' + chr(34) + 'block' + chr(34))}</h2>"
    text = xhtml_text(f"<html><body>{heading}{table}</body></html>")[1]
    assert text == f"## Why $${SOURCE}$$\n\n| stone | loss |\n| --- | --- |\n| rye | {LATEX} |"


def test_formula_of_an_epub_switch_is_not_read_twice():
    switch = f'<switch xmlns="x"><case>{PLAIN}</case><default><p>P is half of v</p></default></switch>'
    assert xhtml_text(f"<html><body><p>So {switch}.</p></body></html>")[1] == f"So {LINE}."


@pytest.mark.parametrize(
    ("mathml", "expected"),
    [
        ("<msup><mi>v</mi><mn>2</mn></msup>", "v^2"),
        ("<mo>(</mo><mi>a</mi><mo>+</mo><mi>b</mi><msup><mo>)</mo><mn>2</mn></msup>", "(a+b)^2"),
        ("<mfrac><mrow><mi>x</mi><mo>+</mo><mn>1</mn></mrow><mn>2</mn></mfrac>", "(x+1)/2"),
        ("<msqrt><mn>3</mn></msqrt><mi>x</mi>", "sqrt(3) x"),
        ("<mroot><mi>x</mi><mn>3</mn></mroot>", "root(3)(x)"),
        (
            "<munderover><mo>\u2211</mo><mrow><mi>i</mi><mo>=</mo><mn>1</mn></mrow><mi>n</mi></munderover>"
            "<msub><mi>x</mi><mi>i</mi></msub>",
            "sum_(i=1)^n x_i",
        ),
        (
            "<munder><mo>lim</mo><mrow><mi>x</mi><mo>\u2192</mo><mn>0</mn></mrow></munder><mi>x</mi>",
            "lim_(x\u21920) x",
        ),
        ("<mover><mi>x</mi><mo>^</mo></mover>", "hat(x)"),
        ("<mi>\u03c9</mi><mo>\u2062</mo><mi>r</mi>", "\u03c9 r"),
        ("<mi>sin</mi><mo>\u2061</mo><mi>x</mi>", "sin x"),
        ("<mfenced><mi>x</mi><mi>y</mi></mfenced>", "(x, y)"),
        ("<mfenced open='[' close=')' separators=';'><mn>0</mn><mn>1</mn></mfenced>", "[0; 1)"),
        (
            "<mtable><mtr><mtd><mi>a</mi></mtd><mtd><mi>b</mi></mtd></mtr>"
            "<mtr><mtd><mi>c</mi></mtd><mtd><mi>d</mi></mtd></mtr></mtable>",
            "[[a, b], [c, d]]",
        ),
        ("<mtable><mtr><mtd><mi>x</mi></mtd><mtd><mo>=</mo><mn>1</mn></mtd></mtr></mtable>", "x=1"),
        ("<mmultiscripts><mi>C</mi><none/><none/><mprescripts/><mn>6</mn><mn>14</mn></mmultiscripts>", "{}_6^14 C"),
        ("<mfrac linethickness='0'><mi>n</mi><mi>k</mi></mfrac>", "binom(n, k)"),
        ("<mn>0</mn><mtext>if</mtext><mi>x</mi>", "0 if x"),
        ("<mi>x</mi><mphantom><mi>y</mi></mphantom>", "x"),
        ("<apply><divide/><ci>v</ci><cn>2</cn></apply>", "divide(v, 2)"),
        ("<mstyle><mi mathvariant='bold'>\U0001d465</mi></mstyle>", "x"),
        ("<mrow>" * 150 + "<mi>x</mi>" + "</mrow>" * 150, "x"),
    ],
)
def test_mathml_in_one_line_says_the_same(mathml, expected):
    assert xhtml_text(f"<html><body><p><math>{mathml}</math></p></body></html>")[1] == expected


def test_price_and_picture_are_no_formulas():
    body = '<p class="math-teacher">It costs $5 or $6. <img class="texture" src="wall.png" alt="a wall"/></p>'
    assert xhtml_text(f"<html><body>{body}</body></html>")[1] == "It costs $5 or $6."
