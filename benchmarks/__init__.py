"""Measurements of speed and of resistance; each module runs as `python -m benchmarks.<name>`."""

import os

# Here, as libraries read them when they are imported. Most modules also ask no model hub.
os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
