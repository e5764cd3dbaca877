"""Judges: what an exchange is scored by, and how far a judge agrees with labels."""

from backburn.components.shared.config import JudgeConfig
from backburn.components.shared.domains.domain import Rubric
from backburn.components.shared.judges.judge import Exchange, Judge, Verdict
from backburn.components.shared.judges.lexical import LexicalJudge
from backburn.components.shared.judges.remembering import RememberingJudge

__all__ = ["Exchange", "Judge", "LexicalJudge", "RememberingJudge", "Verdict", "make_judge"]


def make_judge(config: JudgeConfig, rubric: Rubric) -> Judge:
    """Build the judge of a configuration.

    Raises:
        InputError: if the judge's model is not installed.
    """
    if config.kind == "lexical":
        return LexicalJudge(rubric)
    from backburn.components.shared.judges.semantic import SemanticJudge  # imports torch

    return SemanticJudge(rubric, config)
