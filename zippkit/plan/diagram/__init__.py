"""A composition drawn, as Mermaid and as SVG; no torch."""
