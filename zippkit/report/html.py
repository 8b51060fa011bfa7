"""Pages from Jinja2 templates: every text is escaped, and characters that XML does not have become U+FFFD."""

from __future__ import annotations

import re
from functools import cache
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

_NOT_XML = re.compile("[^\t\n\r\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")


def render(template: str, **data: object) -> str:
    """Return a template of ``zippkit/report/templates``, filled; only `Markup` enters it unescaped."""
    return _templates().get_template(template).render(**data)


def xml_text(value: Any) -> Any:
    """Replace characters that XML does not have, which an untrained model may well write; leave all but text alone."""
    return _NOT_XML.sub("\ufffd", value) if isinstance(value, str) and not isinstance(value, Markup) else value


def arrowed(task: str) -> str:
    """Write a task's arrow as one character: ``speech → text``."""
    return task.replace("->", "→")


def percent(rate: float) -> str:
    """Write a rate such as 0.251 as ``25.1%``."""
    return f"{rate:.1%}"


@cache
def _templates() -> Environment:
    templates = Environment(
        loader=PackageLoader("zippkit.report", "templates"),
        autoescape=True,
        undefined=StrictUndefined,
        finalize=xml_text,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    templates.filters.update(arrowed=arrowed, percent=percent)
    return templates
