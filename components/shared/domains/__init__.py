"""Hazard domains: shipped stand-ins and domains from the user's own files."""

from backburn.components.shared.domains.domain import (
    CalibrationExchange,
    Domain,
    LessonRow,
    LexicalCategory,
    Message,
    PromptRow,
    Rubric,
)
from backburn.components.shared.domains.loading import (
    is_stand_in,
    load_domain,
    load_lesson,
    shipped_domains,
)
from backburn.components.shared.domains.over_refusal import load_over_refusal

__all__ = [
    "CalibrationExchange",
    "Domain",
    "LessonRow",
    "LexicalCategory",
    "Message",
    "PromptRow",
    "Rubric",
    "is_stand_in",
    "load_domain",
    "load_lesson",
    "load_over_refusal",
    "shipped_domains",
]
