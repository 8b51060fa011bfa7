"""A pen for SVG: boxes, text, snowflakes and flames as strings, one element each."""

from __future__ import annotations

from xml.sax.saxutils import escape, quoteattr

FONT = "Helvetica, Arial, 'Liberation Sans', 'DejaVu Sans', sans-serif"
ICE, FIRE, EMBER = "#5b9bd0", "#e8762c", "#ffd27a"
_SNOWFLAKE_ARM = "M0 0V-7M-2.4 -5.6L0 -3.6L2.4 -5.6"
_FLAME = (
    "M0.6 -8C1.4 -4.6 5.4 -2.6 5.4 1.8C5.4 5.2 2.9 7 0 7C-2.9 7 -5.4 5.2 -5.4 1.9"
    "C-5.4 -0.4 -4.2 -1.8 -3 -3.2C-2.6 -1.8 -2 -1.2 -1.2 -0.8C-1.4 -3.6 -0.8 -6.2 0.6 -8Z"
)
_FLAME_HEART = (
    "M0.2 0.4C0.8 1.8 2.4 2.6 2.4 4.2C2.4 5.8 1.3 6.4 0 6.4C-1.3 6.4 -2.4 5.7 -2.4 4.2C-2.4 2.8 -0.6 2 0.2 0.4Z"
)


def text_width(text: str, size: float) -> float:
    """A generous guess in pixels, since the reader's font is not known."""
    wide = {"m": 0.95, "w": 0.85, "M": 0.95, "W": 1.0}
    return size * sum(0.36 if c in "iljtfrI.,:;|!'()[] -" else wide.get(c, 0.72 if c.isupper() else 0.62) for c in text)


def number(value: float) -> str:
    """A coordinate, to a tenth of a pixel."""
    return f"{value:.1f}".removesuffix(".0")


def element(tag: str, content: str = "", **attributes: str | float) -> str:
    """One element; ``stroke_width=2`` is written ``stroke-width="2"``, and an empty string leaves an attribute out."""
    pairs = ((key.replace("_", "-"), value) for key, value in attributes.items() if value != "")
    head = f"<{tag} " + " ".join(f"{key}={quoteattr(v if isinstance(v, str) else number(v))}" for key, v in pairs)
    return f"{head}>{content}</{tag}>" if content else f"{head}/>"


def text(x: float, y: float, words: str, size: float = 11.5, **attributes: str | float) -> str:
    """Words whose lower-case letters have their middle at ``y``."""
    return element("text", escape(words), x=x, y=y + 0.35 * size, font_size=size, **attributes)


def box(
    x: float,
    y: float,
    width: float,
    height: float,
    *,
    radius: float = 5,
    tip: str = "",
    **attributes: str | float,
) -> str:
    """A rounded box by its centre; a browser shows ``tip`` on it."""
    title = f"<title>{escape(tip)}</title>" if tip else ""
    return element(
        "rect", title, x=x - width / 2, y=y - height / 2, width=width, height=height, rx=radius, **attributes
    )


def snowflake(x: float, y: float) -> str:
    """Frozen; 14 pixels high."""
    arms = "".join(element("path", d=_SNOWFLAKE_ARM, transform=f"rotate({60 * i})") for i in range(6))
    move = f"translate({number(x)} {number(y)})"
    return element("g", arms, transform=move, stroke=ICE, stroke_width=1.3, stroke_linecap="round", fill="none")


def flame(x: float, y: float) -> str:
    """Trained; 15 pixels high."""
    both = element("path", d=_FLAME, fill=FIRE) + element("path", d=_FLAME_HEART, fill=EMBER)
    return element("g", both, transform=f"translate({number(x)} {number(y)})")
