"""Promotion: the gate's decision, the registry, the report and the summary."""
