"""Chat templates that do not end or take all memory: refused before the work is done."""

import copy
import time

import pytest

from mmchat.conversation import render
from mmchat.conversation.bounded_jinja import check_cost
from mmchat.errors import UserError

MESSAGES = [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "ho"}]
LOOP, END = "{% for a in range(100000) %}", "{% endfor %}"
DOUBLING = "{% set n = namespace(x=START) %}{% for i in range(99) %}{% set n.x = GROWN %}{% endfor %}{{ n.x }}"


def doubling(start, grown):
    return DOUBLING.replace("START", start).replace("GROWN", grown)


COSTLY = {
    "rounds": LOOP * 2 + END * 2,
    "rounds over text": "{% set s = 'a' * 100000 %}" + "{% for a in s %}" * 3 + END * 3,
    "calls": "{% macro f(n) %}{% if n %}{{ f(n - 1) }}{{ f(n - 1) }}{% endif %}{% endmacro %}{{ f(60) }}",
    "99 GB": "{{ 'a' * 99000000000 }}",
    "99 GB of a variable": "{% set x = 'a' %}{{ x * 99000000000 }}",
    "doubled": doubling("'a'", "n.x + n.x"),
    "doubled by ~": doubling("'a'", "n.x ~ n.x"),
    "nested lists": doubling("[1, 1]", "[n.x, n.x]"),
    "nested lists compared": doubling("[1, 1]", "[n.x, n.x]").replace("{{ n.x }}", "{{ [n.x] == [n.x] }}"),
    "center": "{{ 'a' | center(99000000000) }}",
    "center by map": "{{ ['a'] | map('center', 99000000000) | list }}",
    "ljust": "{{ 'a'.ljust(99000000000) }}",
    "to_bytes": "{{ (1).to_bytes(99000000000, 'big') }}",
    "percent": "{{ '%99000000000d' % 1 }}",
    "percent star": "{{ '%*d' % (99000000000, 1) }}",
    "format": "{{ '{:99000000000}'.format(1) }}",
    "format of a field": "{{ '{:{w}}'.format(1, w=99000000000) }}",
    "replace": "{% set x = 'a' * 100000 %}{{ x.replace('a', x) }}",
    "join": "{% set x = 'a' * 100000 %}{{ x | join(x) }}",
    "indent": "{{ 'a' | indent(99000000000, true) }}",
    "tojson": "{{ [1] | tojson(indent=99000000000) }}",
    "round": "{{ 5 | round(-9000000000) }}",
    "kept lists": "{% set n = namespace(x=[]) %}" + LOOP + "{% set n.x = n.x + [range(999) | list] %}" + END,
}
FAILING = {
    "division": ("{{ 1 / 0 }}", "ZeroDivisionError"),
    "recursion": ("{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}", "RecursionError"),
    "a number": ("{{ 10 ** 99999 }}", r"a number of [\d,]+ bits"),
    "too deep": ("{{ " + "(" * 2000 + "1" + ")" * 2000 + " }}", "RecursionError"),
    "not Jinja": ("{% if %}", "Expected an expression"),
    "a class": ("{{ ''.__class__.__mro__ }}", "is unsafe"),
    "a file": ("{% include '/etc/passwd' %}", "no loader"),
    "its own message": ("{{ raise_exception('No user') }}", "^No user$"),
    "endless filler": ("{{ lipsum(1000000000) }}", "'lipsum' is undefined"),
}


@pytest.mark.parametrize("name", COSTLY)
def test_costs_are_bounded(name):
    started = time.process_time()
    with pytest.raises(UserError, match="it has spent its budget of time and memory"):
        check_cost(COSTLY[name], MESSAGES, {})
    assert time.process_time() - started < 10


@pytest.mark.parametrize("name", FAILING)
def test_failures_are_messages(name):
    jinja, message = FAILING[name]
    with pytest.raises(UserError, match=message):
        check_cost(jinja, MESSAGES, {})


def test_the_environment_is_that_of_transformers():
    jinja = (
        "{% generation %}{{ messages | length }}{% endgeneration %}{{ strftime_now('%Y') }}"
        "{% for m in messages %}{% if loop.last %}{% break %}{% endif %}{{ loop.length }}{{ m | tojson }}{% endfor %}"
        "{{ messages | selectattr('role', 'equalto', 'user') | map(attribute='content') | join(', ') }}"
        "{{ messages[1:][0]['content'] ~ messages[-1].role.upper() }}{{ {'a': 1}.items() | list }}"
    )
    check_cost(jinja, MESSAGES, {})


def test_long_conversations_pass_a_template_that_copies_its_text():
    jinja = "{% set n = namespace(x='') %}{% for m in messages %}{% set n.x = n.x + m.content %}{% endfor %}{{ n.x }}"
    check_cost(jinja, [{"role": "user", "content": "word " * 100}] * 1000, {})


def test_objects_are_out_of_reach(tmp_path, make_image):
    messages = [{"role": "user", "content": [{"type": "image", "image": make_image()}]}]
    with pytest.raises(UserError, match="save"):
        check_cost(f"{{{{ messages[0].content[0].image.save('{tmp_path / 'x.png'}') }}}}", messages, {})
    assert not (tmp_path / "x.png").exists()


def test_rendering_with_the_tokenizers_own_template_is_bounded(llama):
    llama = copy.copy(llama)
    llama.chat_template = LOOP * 2 + END * 2
    with pytest.raises(UserError, match=r"the tokenizer's chat template refuses .* spent its budget"):
        render(MESSAGES, "auto", llama)
