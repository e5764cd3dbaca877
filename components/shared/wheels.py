"""What a wheel's signature says: from which commit it was built, with what.

An in-toto Statement v1 about the wheel; its predicate is SLSA's provenance v1
(https://slsa.dev/spec/v1.0/provenance).
"""

from pathlib import Path
from typing import Final, Literal

from backburn.components.shared.attestation import ResourceDescriptor
from backburn.components.shared.errors import InputError, VerificationError
from backburn.components.shared.evidence import Record
from backburn.components.shared.parsing import first_problem
from backburn.components.shared.signing import STATEMENT_TYPE, open_statement
from backburn.components.shared.storage import sha256_file
from pydantic import ConfigDict, Field, ValidationError
from pydantic.alias_generators import to_camel

PREDICATE_TYPE: Final = "https://slsa.dev/provenance/v1"
BUILD_TYPE: Final = "urn:backburn:build:wheel:v1"
BUILDER = "urn:backburn:builder:make-wheel"


class _Camel(Record):
    model_config = ConfigDict(populate_by_name=True, alias_generator=to_camel)


class SourceParameters(_Camel):
    """What the wheel was built from."""

    commit: str = Field(description="Of git; what the wheel holds only if the tree was clean.")
    clean_tree: bool = Field(description="Whether every file was as the commit has it.")
    source_date_epoch: int = Field(description="Time stamp of the wheel's files, Unix seconds.")


class Locks(_Camel):
    """The images' locks beside the source: versions this code was released with."""

    locks: list[ResourceDescriptor]


class Dependency(_Camel):
    """Something the build read."""

    name: str
    digest: dict[Literal["gitCommit", "sha256"], str]


class BuildDefinition(_Camel):
    """SLSA's `buildDefinition`."""

    build_type: Literal["urn:backburn:build:wheel:v1"] = BUILD_TYPE
    external_parameters: SourceParameters
    internal_parameters: Locks
    resolved_dependencies: list[Dependency]


class Builder(_Camel):
    """SLSA's `builder`."""

    id: str = BUILDER
    version: dict[str, str] = Field(description="Tool -> version.")


class RunDetails(_Camel):
    """SLSA's `runDetails`."""

    builder: Builder


class Provenance(_Camel):
    """SLSA's predicate."""

    build_definition: BuildDefinition
    run_details: RunDetails


class WheelStatement(_Camel):
    """An in-toto Statement v1; field names are its own."""

    type: str = Field(STATEMENT_TYPE, alias="_type")
    subject: list[ResourceDescriptor]
    predicate_type: Literal["https://slsa.dev/provenance/v1"] = PREDICATE_TYPE
    predicate: Provenance


def attestation_of(wheel: Path) -> Path:
    """Where a wheel's attestation lies."""
    return wheel.with_name(f"{wheel.name}.dsse.json")


def describe_file(path: Path, name: str | None = None) -> ResourceDescriptor:
    """A file by its digest; `name` is its own unless another is given."""
    return ResourceDescriptor(name=name or path.name, digest={"sha256": sha256_file(path)})


def verify_wheel(wheel: Path, trusted_key: str) -> WheelStatement:
    """Check that a key signed for this wheel, under this name.

    Args:
        wheel: The file; its attestation lies beside it.
        trusted_key: PEM of the public key that must have signed.

    Raises:
        InputError: if the wheel or its attestation is not there.
        VerificationError: if another key signed, or something else was signed.
    """
    attestation = attestation_of(wheel)
    for path in (wheel, attestation):
        if not path.is_file():
            raise InputError(
                f"{path}: no such file. A signed wheel is two files: the wheel, and beside it "
                f"{attestation.name}"
            )
    try:
        content = open_statement(attestation.read_bytes(), trusted_key)
        statement = WheelStatement.model_validate(content)
    except ValidationError as error:
        raise VerificationError(
            f"{attestation}: not about a wheel: {first_problem(error)}. Do not install {wheel.name}"
        ) from error
    except InputError as error:
        raise VerificationError(f"{attestation}: {error}. Do not install {wheel.name}") from error
    if statement.subject != [describe_file(wheel)]:
        raise VerificationError(
            f"{wheel}: not the wheel that was signed (content or name differs). Do not install it"
        )
    return statement
