"""A picture on a dark page: every colour of the light one has a dark one in its place.

The rules stand in the file itself and act where a reader's system is dark. They name colours, not elements, so that a
picture is drawn once, and programs that know no style sheets show the light one.
"""

from __future__ import annotations

DARK = {
    "#ffffff": "#0d1117",
    "#22303a": "#e6edf3",
    "#68757f": "#9aa6ae",
    "#9aa6ae": "#5d6a73",
    # panel, edge, fill and stroke: frozen, trained, in part
    "#f3f9fd": "#0f1b26",
    "#c3ddef": "#23415a",
    "#d8ebf9": "#17344c",
    "#5b9bd0": "#5b9bd0",
    "#fff8f2": "#231710",
    "#f2d8c1": "#55391f",
    "#fde3cd": "#4a2e17",
    "#d9853f": "#d9853f",
    "#f9f7fd": "#19162a",
    "#d4cbe8": "#3f3663",
    "#e6e0f3": "#2e2850",
    "#8a78bd": "#9c8bd0",
    "#fffdf5": "#1b1a14",
    # links
    "#0068a8": "#58b4f0",
    "#c04f00": "#ff9a57",
    "#007a5a": "#3ecfa6",
    "#a8447f": "#e58cc0",
    "#6a4ba3": "#b59ae8",
    "#7d6500": "#d9bb3f",
    "#a12b2b": "#f08a8a",
    "#3f5560": "#9fb8c4",
}
"""Light colour to dark; contrast of words with their ground is 4.5 or more."""


def _rules() -> str:
    return "".join(
        f'[{attribute}="{light}"]{{{attribute}:{dark}}}'
        for light, dark in DARK.items()
        for attribute in ("fill", "stroke")
        if light != dark
    )


DARK_STYLE = f"<style>@media (prefers-color-scheme:dark){{{_rules()}}}</style>"
"""An element for the beginning of an SVG file."""
