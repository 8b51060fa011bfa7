"""Views of a run, a spec or a model: pages, plots, terminal tables, sizes, differences."""
