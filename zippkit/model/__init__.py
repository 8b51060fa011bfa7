"""Towers, links, the module that runs a plan, and its loss."""
