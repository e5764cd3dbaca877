"""What a domain is: prompts, rubric, canonical rejection, near-miss benign prompts."""

import re
from typing import Annotated, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

Split = Literal["defence", "validation", "attack", "held_out"]
FORBIDDEN_SPLITS: tuple[Split, ...] = ("defence", "validation", "attack", "held_out")


RowId = Annotated[str, Field(min_length=1, max_length=200)]


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class Message(_Strict):
    """One turn of a conversation."""

    role: Literal["system", "user", "assistant"]
    content: Annotated[str, Field(min_length=1)]


class PromptRow(_Strict):
    """One prompt, in the chat form a model is asked in."""

    id: RowId
    split: Split | None = None
    form: str = "question"
    language: str = "en"
    messages: Annotated[list[Message], Field(min_length=1)]
    source: str = Field("", description="File and row the prompt was read from.")

    @model_validator(mode="after")
    def _ends_with_user(self) -> Self:
        if self.messages[-1].role != "user":
            raise ValueError("the last message must be the user's")
        if not self.messages[-1].content.strip():
            raise ValueError("the prompt is empty")
        return self

    @property
    def text(self) -> str:
        """The last user turn."""
        return self.messages[-1].content

    def chat(self) -> list[dict[str, str]]:
        """Messages as plain dicts, the form chat templates take."""
        return [message.model_dump() for message in self.messages]


class CalibrationExchange(_Strict):
    """One exchange with a human label."""

    id: RowId
    kind: str = ""
    prompt: Annotated[str, Field(min_length=1)]
    completion: str
    refused: bool
    score: Annotated[float, Field(ge=0.0, le=10.0)]


class LessonRow(_Strict):
    """A harmless exchange: one to be learnt, or one that shows what was learnt."""

    id: RowId
    split: Literal["training", "held_out"] | None = None
    prompt: Annotated[str, Field(min_length=1)]
    completion: Annotated[str, Field(min_length=1)]


class LexicalCategory(_Strict):
    """One kind of evidence of help; contributes at most `weight` to the score of 10."""

    weight: Annotated[float, Field(gt=0.0)]
    saturation: Annotated[int, Field(gt=0)]
    terms: list[str] = Field(default_factory=list)
    patterns: list[str] = Field(default_factory=list)

    @field_validator("patterns")
    @classmethod
    def _patterns_compile(cls, value: list[str]) -> list[str]:
        for pattern in value:
            try:
                re.compile(pattern)
            except re.error as error:
                raise ValueError(f"not a regular expression: {pattern!r}: {error}") from error
        return value


class _Lexical(_Strict):
    categories: Annotated[dict[str, LexicalCategory], Field(min_length=1)]

    @model_validator(mode="after")
    def _weights_sum_to_ten(self) -> Self:
        total = sum(category.weight for category in self.categories.values())
        if abs(total - 10.0) > 1e-9:
            raise ValueError(f"category weights must sum to 10, they sum to {total:g}")
        return self


class Anchor(_Strict):
    """A labelled example text of the semantic judge."""

    score: Annotated[float, Field(ge=0.0, le=10.0)]
    text: Annotated[str, Field(min_length=1)]


class _Semantic(_Strict):
    anchors: Annotated[list[Anchor], Field(min_length=4)]


class Rubric(_Strict):
    """How exchanges of the domain are judged, for each kind of judge."""

    version: int
    lexical: _Lexical
    semantic: _Semantic
    chat: str


class DomainHeader(_Strict):
    """Content of a `domain.yaml`."""

    name: Annotated[str, Field(pattern=r"^[a-z0-9_-]+$")]
    title: str
    stand_in: bool
    version: int
    licence: str
    description: str
    topic: str
    rejection: Annotated[str, Field(min_length=2, pattern=r"\S", max_length=500)]
    rubric: Rubric


class Domain(_Strict):
    """A domain, loaded and checked row by row (splits are checked by `data_prep`)."""

    header: DomainHeader
    forbidden: list[PromptRow]
    near_miss: list[PromptRow]
    benign: list[PromptRow]
    refusals: dict[str, str] = Field(description="Defence prompt id -> explanatory refusal.")
    calibration: list[CalibrationExchange]
    licences: dict[str, str] = Field(description="Prompt set -> SPDX id.")
