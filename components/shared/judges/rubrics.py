"""What chat judges are told, kept as versioned prompts in MLflow's prompt registry."""

from backburn.components.shared.config import JudgesConfig
from backburn.components.shared.domains.domain import DomainHeader
from backburn.components.shared.evidence import RubricRecord
from backburn.components.shared.storage import sha256_text
from mlflow.entities.model_registry import PromptVersion
from mlflow.exceptions import MlflowException
from mlflow.tracking import MlflowClient

_DIGEST_TAG = "backburn.rubric_sha256"
_VERSION_TAG = "backburn.rubric_version"


def keep_rubrics(
    judges: JudgesConfig, header: DomainHeader, mlflow: MlflowClient
) -> list[RubricRecord]:
    """Register what the chat judges of a run are told; a text that is registered is found again.

    Args:
        judges: Of the run.
        header: Of the domain.
        mlflow: Client of the registry.

    Returns:
        A record for each chat judge, members of panels included; empty if there is none.
    """
    configs = [
        judge
        for role in (judges.reward, judges.evaluation)
        for judge in (role.members or [role])
        if judge.chat is not None
    ]
    if not configs:
        return []
    from backburn.components.shared.judges.chat import judge_id, question_text

    text = question_text(header.rubric)
    digest = sha256_text(text)
    name = f"backburn-rubric-{header.name}"
    found = [
        version for version in _versions(mlflow, name) if version.tags.get(_DIGEST_TAG) == digest
    ]
    prompt = (
        max(found, key=lambda version: version.version)
        if found
        else mlflow.register_prompt(
            name,
            text,
            commit_message=f"Rubric version {header.rubric.version} of {header.title}",
            tags={_DIGEST_TAG: digest, _VERSION_TAG: str(header.rubric.version)},
        )
    )
    return [
        RubricRecord(
            judge=judge_id(judge.id, header.rubric),
            name=name,
            version=int(prompt.version),
            uri=str(prompt.uri),
            sha256=digest,
        )
        for judge in configs
    ]


def _versions(mlflow: MlflowClient, name: str) -> list[PromptVersion]:
    try:
        return list(mlflow.search_prompt_versions(name))
    except MlflowException as error:
        if error.error_code != "RESOURCE_DOES_NOT_EXIST":
            raise
        return []
