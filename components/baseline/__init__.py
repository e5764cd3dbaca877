"""Baseline: the ordinarily aligned model that controls attack and the defence hardens."""
