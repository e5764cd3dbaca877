"""Measurements of speed and of resistance; each module runs as `python -m benchmarks.<name>`."""
