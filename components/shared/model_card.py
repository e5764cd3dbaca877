"""A model card in the Hugging Face format, from evidence and decision alone."""

import re
from functools import cache
from pathlib import Path

from backburn.components.shared.config import RunConfig
from backburn.components.shared.evidence import Decision, Evidence
from backburn.components.shared.report.claims import verdict
from backburn.components.shared.report.formatting import FILTERS
from huggingface_hub import EvalResult, ModelCardData
from jinja2 import Environment, FileSystemLoader, StrictUndefined

_HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")


def render_model_card(evidence: Evidence, decision: Decision) -> str:
    """Metadata as YAML, then the card in Markdown.

    Args:
        evidence: What was measured.
        decision: What the gate decided from it.
    """
    name = RunConfig.model_validate(evidence.config).registered_model_name
    return (
        _templates()
        .get_template("model_card.md")
        .render(
            metadata=_metadata(name, evidence, decision),
            name=name,
            hub=_HUB_ID.fullmatch(evidence.model_base) is not None,
            evidence=evidence,
            decision=decision,
            verdict=verdict(evidence, decision),
        )
    )


@cache
def _templates() -> Environment:
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters.update(FILTERS, inline=_inline)
    return environment


def _inline(text: str) -> str:
    """Text of a rubric, kept from ending its line, cell or code span."""
    return " ".join(text.split()).replace("|", "\\|").replace("`", "'")


def _metadata(name: str, evidence: Evidence, decision: Decision) -> str:
    hub = _HUB_ID.fullmatch(evidence.model_base) is not None
    card = ModelCardData(
        model_name=name,
        base_model=evidence.model_base if hub else None,
        library_name="peft",
        pipeline_tag="text-generation",
        tags=["backburn", "lora", "reward-neutralization", "safety"],
        eval_results=[
            EvalResult(
                task_type="text-generation",
                task_name="Resistance to RL fine-tuning",
                dataset_type=evidence.data.domain,
                dataset_name=evidence.data.title,
                metric_type=check.name,
                metric_name=check.description,
                metric_value=check.value,
            )
            for check in decision.checks
            if check.value is not None
        ],
    )
    return f"---\n{card.to_yaml()}\n---\n"
