"""Chat templates of strangers, run in bounded time and memory.

A chat template is a program. The sandbox of transformers keeps it from files and processes, but not from looping 10^10
times or asking for 99 GB. `check_cost` runs a template first in an environment that charges every loop, call and value
against a budget before the work is done. What passes is bounded in transformers' environment, too, because both run
the same program on the same messages.
"""

from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache, wraps
from typing import Any

from jinja2 import nodes
from jinja2.exceptions import TemplateError
from jinja2.sandbox import ImmutableSandboxedEnvironment

from mmchat.conversation.jinja_budget import (
    GROWING_FILTERS,
    GROWING_METHODS,
    STEP,
    charge,
    charge_percent,
    charge_product_of,
    measure,
    set_budget,
)
from mmchat.errors import UserError

SHOWN = 200
"""How many characters of a template's own error a message shows."""


def check_cost(jinja: str, messages: Sequence[Mapping[str, Any]], variables: Mapping[str, Any]) -> None:
    """Run a chat template within a budget.

    Args:
        jinja: The template.
        messages: The conversation.
        variables: The other variables of the template.

    Raises:
        UserError: The template raises, whatever it raises, or spends its budget.
    """
    plain = _plain(messages)
    set_budget(plain)
    try:
        template = _compiled(jinja)
        for _ in template.generate(messages=plain, **_plain(dict(variables))):
            pass  # not joined: each piece is charged already
    except Exception as error:  # many types: a template is a program
        reason = " ".join(str(error).split())[:SHOWN]
        name = "" if isinstance(error, TemplateError) else f"{type(error).__name__}: "
        raise UserError(f"{name}{reason}") from error


def _plain(value: Any) -> Any:
    """The value without objects, whose methods a template could call. Images become their type's name."""
    if value is None or isinstance(value, str | int | float):
        return value
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    return f"<{type(value).__name__}>"


def _listed(value: Any) -> Any:
    """A generator as a list, so that it can be measured."""
    return list(value) if hasattr(value, "__next__") else value


def _metered(name: str, function: Callable[..., Any]) -> Callable[..., Any]:
    """A filter or test that charges for its arguments, and for what it makes."""

    @wraps(function)  # keeps the mark of those that take the context first
    def call(*arguments: Any, **named: Any) -> Any:
        own = list(map(_listed, arguments))
        charge(STEP)
        measure([*own, *named.values()])
        if name in GROWING_FILTERS:
            GROWING_FILTERS[name](*own[hasattr(function, "jinja_pass_arg") :], **named)
        return function(*own, **named)

    return call


def _measured(value: Any) -> Any:
    """Filter that is put around values that are written, compared or concatenated."""
    value = _listed(value)
    measure(value)
    return value


def _looped(value: Any) -> Any:
    """Filter that is put around what a loop runs over: charges all rounds."""
    value = _listed(value)
    if hasattr(value, "__len__"):
        charge(STEP * len(value))
    return value


_MEASURED, _LOOPED = "measured value", "charged rounds"
"""Names of these filters, which no template can spell."""


def _wrap(node: nodes.Expr, name: str = _MEASURED) -> nodes.Expr:
    """The value of a node, through a filter."""
    return node if isinstance(node, nodes.Const) else nodes.Filter(node, name, [], [], None, None, lineno=node.lineno)


def _charging(template: nodes.Template) -> nodes.Template:
    """Put `_measured` and `_looped` into a parsed template, wherever Jinja works on values without a function."""
    kinds = (nodes.For, nodes.Output, nodes.Concat, nodes.Compare, nodes.Getitem, nodes.Pair)
    for node in list(template.find_all(kinds)):
        if isinstance(node, nodes.For):
            node.iter = _wrap(node.iter, _LOOPED)  # type: ignore[arg-type]
        elif isinstance(node, nodes.Output | nodes.Concat):
            node.nodes = [one if isinstance(one, nodes.TemplateData) else _wrap(one) for one in node.nodes]
        elif isinstance(node, nodes.Compare):
            node.expr = _wrap(node.expr)
            for operand in node.ops:
                operand.expr = _wrap(operand.expr)
        elif isinstance(node, nodes.Pair):
            node.key = _wrap(node.key)
        elif isinstance(node, nodes.Getitem) and not isinstance(node.arg, nodes.Slice):
            node.arg = _wrap(node.arg)
    return template


class _BoundedEnvironment(ImmutableSandboxedEnvironment):
    """transformers' environment for chat templates, which charges for all that a template does."""

    intercepted_binops = frozenset(["+", "*", "**", "%"])  # also keeps constants from being computed by the compiler

    def _parse(self, source: str, name: str | None, filename: str | None) -> nodes.Template:
        return _charging(super()._parse(source, name, filename))

    def call_binop(self, context: Any, operator: str, left: Any, right: Any) -> Any:
        measure(left)
        measure(right)
        if operator in ("*", "**"):
            charge_product_of(operator, left, right)
        elif operator == "%":
            charge_percent(left, right)
        return super().call_binop(context, operator, left, right)

    def call(__self, __context: Any, __obj: Any, *args: Any, **kwargs: Any) -> Any:  # noqa: N805  (names of jinja2)
        charge(STEP)
        args = tuple(map(_listed, args))
        measure([*args, *kwargs.values()])
        method = getattr(__obj, "__wrapped__", __obj)  # jinja2 wraps str.format
        owner = getattr(method, "__self__", None)
        if isinstance(owner, str | bytes | int | list | tuple | dict):
            measure(owner)
            if method.__name__ in GROWING_METHODS:
                GROWING_METHODS[method.__name__](owner, *args, **kwargs)
        return super().call(__context, __obj, *args, **kwargs)


@lru_cache(maxsize=1)
def _environment() -> _BoundedEnvironment:
    """transformers' environment as ours: the same filters, globals and extensions."""
    # Imported here because it loads torch. No public name gives the environment.
    from transformers.utils.chat_template_utils import _compile_jinja_template

    theirs = _compile_jinja_template("").environment
    ours = object.__new__(_BoundedEnvironment)
    ours.__dict__.update(theirs.__dict__)
    ours.extensions = {name: extension.bind(ours) for name, extension in theirs.extensions.items()}
    ours.filters = {name: _metered(name, function) for name, function in theirs.filters.items()}
    ours.filters |= {_MEASURED: _measured, _LOOPED: _looped}
    ours.tests = {name: _metered("", function) for name, function in theirs.tests.items()}
    ours.globals = {name: value for name, value in theirs.globals.items() if name != "lipsum"}
    return ours


@lru_cache(maxsize=32)
def _compiled(jinja: str) -> Any:
    return _environment().from_string(jinja)
