"""Experiments: a grid of recipes, run or resumed, and a page that sets its numbers beside a paper's claims."""
