"""What a run, a spec or a model looks like: pages, plots, terminal tables, sizes, differences."""
