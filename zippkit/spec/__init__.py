"""YAML that a user writes, checked: specs, recipes, and where a kind is found; no torch."""
