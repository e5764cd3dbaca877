"""Preflight: find what is wrong with a run before anything expensive starts."""
