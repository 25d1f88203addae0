"""Templates run as in transformers, and a hostile one ends soon and reaches nothing."""

import time

import pytest
from transformers.utils.chat_template_utils import _compile_jinja_template

from model.data.chat_sandbox import MOST_SOURCE, compiled, written

MESSAGES = [{"role": "user", "content": " a, b "}, {"role": "assistant", "content": "<\u00e9>"}] * 2
VARIABLES = {"messages": MESSAGES, "add_generation_prompt": True, "tools": None, "bos_token": "<s>"}
TWICE = "{{% set n = namespace(x='aaaa') %}}{{% for i in range(60) %}}{}{{% endfor %}}"


@pytest.mark.parametrize(
    "source",
    [
        "{% for m in messages %}{{ loop.index }}{{ loop.last }}{{ loop.length }}{{ m.content ~ 1 }}{% endfor %}",
        "{% for m in messages if m.role == 'user' %}{{ m['content'] | trim | upper }}{% else %}none{% endfor %}",
        "{% for m in messages %}{% if loop.index == 2 %}{% break %}{% endif %}{{ m.content.strip() }}{% endfor %}",
        "{% set n = namespace(x=1) %}{% for m in messages %}{% set n.x = m.content %}{% endfor %}{{ n.x }}",
        "{{ messages | tojson }}{{ messages[1] | tojson(indent=2) }}",
        "{{ messages | selectattr('role', 'equalto', 'user') | list }}{{ messages | rejectattr('nothing') | list }}",
        "{{ messages | map(attribute='content') | join('|') }}{{ messages | join('|', attribute='role') }}",
        "{{ messages[0].content.split(',')[-1] }}{{ messages[1:] | length }}{{ ','.join(['a', 'b']) }}",
        "{{ messages[0].content.replace('a', 'bb') | replace('b', 'c') }}{{ 5 % 2 }}{{ bos_token + 'x' * 3 }}",
        "{% macro m(x, y='z') %}{{ x }}{{ y }}{% endmacro %}{{ m(messages[0].content) }}{{ m('a', y='b') }}",
        "{% set x %}{{ messages[0].content }}!{% endset %}{{ x }}{% filter upper %}{{ x }}{% endfilter %}",
        "  {% if tools is none %}\n  yes\n  {% endif %}\n{{- messages[-1].role }}\n",
        "{% for m in messages %}{% generation %}{{ m.content }}{% endgeneration %}{% endfor %}",
        "{{ not_there }}{{ not_there is defined }}{{ messages[0].nothing or 'd' }}{{ none | d('e', true) }}",
    ],
)
def test_template_writes_what_it_writes_in_transformers(source):
    assert written(compiled(source), VARIABLES) == _compile_jinja_template(source).render(**VARIABLES)


def test_date_is_not_given_so_that_ids_are_the_same_tomorrow():
    source = "{% if strftime_now is defined %}{{ strftime_now('%d') }}{% else %}26{% endif %}"
    assert written(compiled(source), VARIABLES) == "26"


@pytest.mark.parametrize(
    "source",
    [
        "{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}",
        "{% for i in range(99999) %}{% for j in range(99999) %}" + "a" * 100 + "{% endfor %}{% endfor %}",
        "{{ 'a' * 10 ** 10 }}",
        "{{ 10 ** 10 * [1] }}",
        TWICE.format("{% set n.x = n.x ~ n.x %}"),
        TWICE.format("{% set n.x = n.x + n.x %}"),
        TWICE.format("{% set n.x %}{{ n.x }}{{ n.x }}{% endset %}"),
        TWICE.format("{% set n.x = n.x.replace('a', n.x) %}"),
        TWICE.format("{% set n.x = n.x | replace('a', n.x) %}"),
        TWICE.format("{% set n.x = n.x.join(n.x) %}"),
        TWICE.format("{% set n.x = [n.x, n.x] | join %}"),
        "{% macro m(n) %}{% if n %}{{ m(n - 1) }}{{ m(n - 1) }}{% endif %}{% endmacro %}{{ m(15) }}"
        + "{{ m(15) }}" * 40,
    ],
)
def test_template_that_takes_for_ever_or_writes_too_much_is_stopped(source):
    began = time.process_time()
    with pytest.raises(ValueError, match="takes more than 1,000,000 steps or writes too much"):
        written(compiled(source), VARIABLES)
    assert time.process_time() - began < 30


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("{{ ''.__class__.__mro__ }}", "access to attribute '__class__'"),
        ("{{ messages.append(1) }}", "access to attribute 'append'"),
        ("{{ '%1000000000d' % 1 }}", "formats a text by %"),
        ("{{ '{:1000000000}'.format(1) }}", "access to attribute 'format'"),
        ("{{ 'a'.center(10 ** 9) }}", "access to attribute 'center'"),
        ("{{ 2 ** 10 ** 9 }}", "computes a number of more than 64 bits|a power of 1000000000"),
        ("{% set n = namespace(x=99) %}{% for i in range(60) %}{% set n.x = n.x * n.x %}{% endfor %}", "64 bits"),
        ("{{ lipsum(n=10) }}", "'lipsum' is undefined"),
        ("{{ messages | tojson(indent=1000000) }}", "indents JSON by 1000000"),
        ("{% macro m() %}{{ m() }}{% endmacro %}{{ m() }}", "recursion"),
        ("{{ range(10 ** 9) | list }}", "Range too big"),
        ("{{ raise_exception('no tools') }}", "no tools"),
        ("{{ nobody.content }}", "'nobody' is undefined"),
    ],
)
def test_template_that_reaches_beyond_its_text_is_stopped(source, message):
    with pytest.raises(ValueError, match=message):
        written(compiled(source), VARIABLES)


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("a\n{% for %}", "not a chat template, line 2: "),
        ("{% for m in messages %}", "not a chat template, line 1: "),
        ("\n\n{% include 'secrets' %}", "line 3: a chat template is one file, but this one has `include`"),
        ("{% import 'x' as y %}", "has `import`"),
        ("{% from 'x' import y %}", "has `fromimport`"),
        ("{% extends 'x' %}", "has `extends`"),
        ("{{ 'a' | center(80) }}", "No filter named 'center'"),
        ("{{ " + "(" * 5000 + "1" + ")" * 5000 + " }}", "recursion"),
        ("x" * (MOST_SOURCE + 1), "a chat template of 1,000,001 characters, expected at most 1,000,000"),
    ],
)
def test_text_that_is_no_template_is_refused_with_its_line(source, message):
    with pytest.raises(ValueError, match=message):
        compiled(source)
