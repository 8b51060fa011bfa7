"""Pages from templates: nothing that a user names becomes markup."""

from __future__ import annotations

import pytest
from markupsafe import Markup

from zippkit.report.html import render, xml_text

HOSTILE = "<script>alert('x')</script> & \x00"


def page(**changed: object) -> str:
    data = {
        "title": HOSTILE, "preset": HOSTILE, "notes": [HOSTILE], "tiles": [(HOSTILE, HOSTILE, "bad")], "sections": [],
        "explanation": HOSTILE, "versions": [HOSTILE, HOSTILE], "version": HOSTILE, "written": HOSTILE,
    }  # fmt: skip
    return render("experiment.html", **data | changed)


def test_hostile_names_are_escaped() -> None:
    written = page()
    assert "<script" not in written and "\x00" not in written
    assert written.count("&lt;script&gt;alert(&#39;x&#39;)&lt;/script&gt; &amp; \ufffd") == 11


def test_what_is_not_given_is_an_error_instead_of_nothing() -> None:
    with pytest.raises(Exception, match="'sections' is undefined"):
        render("experiment.html", title="", preset=None, notes=[], tiles=[], explanation="")


def test_markup_is_left_alone() -> None:
    assert xml_text(Markup("<b>")) == "<b>" and xml_text(3) == 3
    assert xml_text("a\x1b[31m\ud800") == "a\ufffd[31m\ufffd"
