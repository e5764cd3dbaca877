"""What a webhook is told about a run: names, figures and links, and no text of a model or row."""

from typing import Literal

from backburn.components.shared.evidence import Check, Outcome, Record
from pydantic import Field

SCHEMA_VERSION = "1"


class Figure(Record):
    """One check of the gate."""

    name: str
    description: str
    value: float | None
    threshold: float
    comparison: Literal["<=", ">="]
    passed: bool

    @classmethod
    def of(cls, check: Check) -> "Figure":
        """A check, without its detail."""
        return cls(**{name: getattr(check, name) for name in cls.model_fields})


class RegisteredVersion(Record):
    """Where the model went in the registry."""

    name: str
    version: str
    alias: str


class Audited(Record):
    """The registered version that an audit attacked again."""

    version: str = Field(description="`models:/name/version`.")
    action: str = Field(description="none, demoted or reported.")


class Links(Record):
    """Pages about the run; None where there is no server that shows them."""

    mlflow_run: str | None = None
    report: str | None = None
    version: str | None = None
    pipeline_run: str | None = None


class Notification(Record):
    """How a pipeline run ended: the body of a generic webhook."""

    schema_version: str = SCHEMA_VERSION
    event: Literal["run.ended"] = "run.ended"
    time: str = Field(description="When it ended: UTC, ISO 8601.")
    run_id: str
    pipeline: str = Field(description="harden, audit or rejudge; unknown if MLflow did not say.")
    state: str = Field(description="Of the pipeline, by KFP: SUCCEEDED, FAILED or CANCELLED.")
    outcome: Outcome | Literal["none"] = Field(
        description="Of the gate; none: it did not get to decide, or MLflow did not say."
    )
    failed_step: str | None = Field(None, description="Step that raised an error last.")
    error: str | None = Field(None, description="Class of that error; never its message.")
    reasons: list[str] = Field(default_factory=list, description="The gate's own.")
    figures: list[Figure] = Field(default_factory=list)
    model: str
    domain: str
    claim: str | None = Field(None, description="In words; only of a passed gate.")
    dry_run: bool
    registration: RegisteredVersion | None = None
    audited: Audited | None = None
    links: Links = Field(default_factory=lambda: Links())
    unknown: list[str] = Field(
        default_factory=list,
        description="What could not be found out, so that what is missing above says nothing.",
    )

    @property
    def good(self) -> bool:
        """Whether the pipeline and its gate passed."""
        return self.state == "SUCCEEDED" and self.outcome == "passed"

    def figure(self, name: str) -> Figure | None:
        """The figure of that name."""
        return next((figure for figure in self.figures if figure.name == name), None)
