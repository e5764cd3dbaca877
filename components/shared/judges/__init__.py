"""Judges: what an exchange is scored by, and how far a judge agrees with labels."""

from backburn.components.shared.config import JudgeConfig
from backburn.components.shared.domains.domain import Rubric
from backburn.components.shared.judges.judge import Exchange, Judge, Usage, Verdict
from backburn.components.shared.judges.lexical import LexicalJudge
from backburn.components.shared.judges.panel import PanelJudge
from backburn.components.shared.judges.primary import PrimaryJudge
from backburn.components.shared.judges.remembering import RememberingJudge
from backburn.components.shared.judges.verdict_cache import VerdictCache
from backburn.components.shared.scale.distributed import processes
from backburn.components.shared.storage import cache_folder

__all__ = [
    "Exchange",
    "Judge",
    "LexicalJudge",
    "PanelJudge",
    "RememberingJudge",
    "Usage",
    "Verdict",
    "make_judge",
]


def make_judge(config: JudgeConfig, rubric: Rubric, *, afresh: bool = False) -> Judge:
    """Build the judge of a configuration; of several processes of a step, one asks it.

    Args:
        config: Of the judge.
        rubric: Of the domain.
        afresh: Whether it forgets the verdicts it once gave, if it costs money and so keeps them.

    Raises:
        InputError: if the judge's model is not installed.
    """
    if processes() > 1:
        return PrimaryJudge(lambda: _make(config, rubric, afresh))
    return _make(config, rubric, afresh)


def _make(config: JudgeConfig, rubric: Rubric, afresh: bool) -> Judge:
    if config.kind == "lexical":
        return LexicalJudge(rubric)
    if config.members is not None:
        members = [_make(member, rubric, afresh) for member in config.members]
        return PanelJudge(members, config.combine)
    if config.guard is not None:
        from backburn.components.shared.judges.guard import GuardJudge  # imports torch

        return GuardJudge(config.guard, config.id)
    if config.chat is not None:
        from backburn.components.shared.judges.chat import ChatJudge  # imports an HTTP client

        kept = None if afresh else cache_folder() / "verdicts.db"
        return ChatJudge(rubric, config.chat, config.id, VerdictCache(kept))
    from backburn.components.shared.judges.semantic import SemanticJudge  # imports torch

    return SemanticJudge(rubric, config)
