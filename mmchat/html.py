"""The pages that mmchat writes: one Jinja environment over the templates in `html_templates/`.

A template `*.html.jinja` gives one self-contained page. The values come from data sets and models, so everything
inserted into HTML is escaped.
"""

from functools import cache
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined


def render(template_name: str, **values: Any) -> str:
    """Render a template of `html_templates/`.

    Args:
        template_name: file name without `.jinja`: "run_report.html" or "data_check.md".
        values: what the template refers to; a missing one raises. Functions may be called as `{{ f(x) }}`.

    Returns:
        The page. HTML is escaped; Markdown is not.
    """
    return _environment().get_template(f"{template_name}.jinja").render(values)


@cache
def _environment() -> Environment:
    return Environment(
        loader=PackageLoader("mmchat", "html_templates"),
        autoescape=lambda name: name is not None and name.endswith(".html.jinja"),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
