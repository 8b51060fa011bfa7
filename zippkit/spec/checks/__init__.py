"""Everything that can be wrong with a spec below the level of keys and types, told all at once; no torch."""
