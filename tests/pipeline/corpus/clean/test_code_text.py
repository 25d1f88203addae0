"""Source code with its language, and notebooks."""

import json

import pytest

from pipeline.corpus.clean.code_text import LANGUAGES, code_text, language_of_name, notebook_text

CODE = "# Copyright 2024 The Mill. Licence: MIT\n\ndef grind(grain):\n\treturn  flour\n"


def test_code_stays_as_it_is_with_its_name_and_language():
    extracted = code_text(CODE, "file:///mills/grind%20it.py#line=3")
    assert extracted.text == CODE
    assert (extracted.title, extracted.code_language, extracted.extractor) == ("grind it.py", "Python", "code")
    assert extracted.reason is None and code_text(" \n", "a.py").reason == "no_text"


@pytest.mark.parametrize(
    ("name", "text", "language"),
    [
        ("a/B.RS", "", "Rust"),
        ("a.cpp.gz", "", "C++"),
        ("src/Makefile", "", "Makefile"),
        ("CMakeLists.txt", "", "CMake"),
        ("Dockerfile", "", "Dockerfile"),
        ("run", "#!/usr/bin/env -S A=1 python3.11 -u\n", "Python"),
        ("run", "#! /bin/sh -e\n", "Shell"),
        ("run", "#!/usr/bin/node", "JavaScript"),
        ("run", "#!", None),
        ("run", "text", None),
        ("a.h", "int f(void);\n", "C"),
        ("a.h", "class Mill {\npublic:\n};\n", "C++"),
        ("a.m", "function y = f(x)\n", "MATLAB"),
        ("a.m", "#import <x.h>\n@interface Mill\n", "Objective-C"),
        ("a.pl", "use strict;\n", "Perl"),
        ("a.pl", "mill(X) :- grain(X).\n", "Prolog"),
        ("a.v", "module m;\n", "Verilog"),
        ("a.v", "Theorem t : True.\n", "Coq"),
        ("a.xyz", "", None),
    ],
)
def test_code_language_by_name_suffix_first_line_or_text(name, text, language):
    assert code_text(text, name).code_language == language


def test_code_languages_are_many_and_no_suffix_is_claimed_twice():
    suffixes = [suffix for suffixes in LANGUAGES.values() for suffix in suffixes]
    assert len(LANGUAGES) >= 40 and len(suffixes) == len(set(suffixes))
    assert all(language_of_name(f"x{suffix}") for suffix in suffixes)


def test_notebook_cells_come_in_order_and_outputs_do_not(writers):
    cells = [
        {"cell_type": "markdown", "source": ["# The mill\n", "It grinds."]},
        {"cell_type": "code", "source": "grind()\n", "outputs": [{"text": "flour"}]},
        {"cell_type": "raw", "source": "raw"},
    ]
    extracted = notebook_text(writers.notebook(cells).decode())
    assert extracted.text == "# The mill\nIt grinds.\n\n```python\ngrind()\n```\n\nraw"
    assert (extracted.title, extracted.code_language, extracted.extractor) == ("The mill", "Python", "notebook")


def test_notebook_of_the_older_format_is_read():
    sheet = {"cells": [{"cell_type": "heading", "level": 2, "source": "Mill"}, {"cell_type": "code", "input": "1"}]}
    assert notebook_text(json.dumps({"worksheets": [sheet]})).text == "## Mill\n\n```\n1\n```"


@pytest.mark.parametrize("text", ["", "no json", "[1]", "{}", '{"cells": 3}', "[" * 100_000, '{"cells": [', "null"])
def test_notebook_that_is_none_is_unreadable(text):
    assert notebook_text(text).reason == "unreadable"


@pytest.mark.parametrize("cells", [[], [1, None, {}], [{"source": 3}], [{"cell_type": 3, "source": [1, None]}]])
def test_notebook_without_cells_that_say_something_has_no_text(cells):
    assert notebook_text(json.dumps({"cells": cells, "metadata": 3})).reason == "no_text"
