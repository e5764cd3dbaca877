"""The run's report: one self-contained HTML page made from the evidence and the decision."""

from backburn.components.shared.report.render import render_report

__all__ = ["render_report"]
