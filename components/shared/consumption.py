"""Fetching a registered model, and refusing it unless its evidence holds."""

import re
import shutil
import tempfile
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from backburn.components.shared.attestation import ADAPTER_FOLDER, ATTESTATION, EVIDENCE, FILES
from backburn.components.shared.config import RunConfig
from backburn.components.shared.errors import InputError, VerificationError
from backburn.components.shared.evidence import Evidence
from backburn.components.shared.models import ModelManifest, load_artifact, weight_digests
from backburn.components.shared.parsing import one_line, shown
from backburn.components.shared.storage import sha256_file, write_json
from backburn.components.shared.tracking import download
from backburn.components.shared.verification import Verification, verify_bundle
from mlflow.entities.model_registry import ModelVersion
from mlflow.exceptions import MlflowException
from mlflow.tracking import MlflowClient

MERGED_FOLDER = "merged"
_REFERENCE = re.compile(
    r"models:/(?P<name>[A-Za-z0-9._ -]+)(?:@(?P<alias>[^/@\s]+)|/(?P<version>[0-9]{1,9}))"
)
COPIED_TAG = "backburn.copied_from"
"""Of a version that was copied from another registered model."""
_EVIDENCE_TAG = "backburn.evidence_sha256"
_TAGS: dict[str, Callable[[Evidence], str]] = {
    "backburn.run_id": lambda evidence: evidence.run_id,
    "backburn.config_digest": lambda evidence: evidence.config_digest,
    "backburn.hardened_digest": lambda evidence: evidence.hardened_digest,
    "backburn.baseline_digest": lambda evidence: evidence.baseline_digest,
    "backburn.base_model": lambda evidence: evidence.model_base,
    "backburn.domain": lambda evidence: evidence.data.domain,
}


@dataclass(frozen=True)
class Pulled:
    """What was fetched, and what its evidence says."""

    name: str
    version: str
    evidence_sha256: str
    verification: Verification


def pull(
    reference: str,
    output: Path,
    uri: str,
    trusted_key: str | None = None,
    *,
    merged: bool = False,
) -> Pulled:
    """Fetch a registered model with its bundle; nothing is left under `output` unless all holds.

    The folder then has the bundle's files, `adapter/`, a `manifest.json` made from the evidence,
    `base/` if the base is stored nowhere else, and `merged/` if asked for. Weights are safetensors.

    Args:
        reference: `models:/<name>@<alias>` or `models:/<name>/<version>`.
        output: Folder to make; must not exist.
        uri: Of the MLflow server or store.
        trusted_key: PEM of the public key that must have signed; see `verify_bundle`.
        merged: Write the base with the adapter merged into it as well.

    Raises:
        InputError: if there is no such version, or the folder exists.
        VerificationError: if it has no bundle, the bundle is not sound, its weights are not the
            tested ones, or its gate did not pass.
    """
    if output.exists():
        raise InputError(f"--output {output}: exists already; give a new folder")
    client = MlflowClient(tracking_uri=uri)
    version = find_version(client, reference)
    output.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=output.parent, prefix=f".{output.name}.") as scratch:
        fetched = fetch(version, Path(scratch), uri)
        verification = verified(reference, fetched, version, trusted_key)
        assert verification.evidence is not None
        result = Path(scratch) / "result"
        _assemble(verification.evidence, fetched, result)
        if merged:
            _merge(verification.evidence, result)
        result.rename(output)
    digest = sha256_file(output / EVIDENCE)
    return Pulled(str(version.name), str(version.version), digest, verification)


class Fetched(NamedTuple):
    """Folders of a version's files, as the registry has them: nothing is verified yet."""

    bundle: Path
    model: Path


def fetch(version: ModelVersion, scratch: Path, uri: str) -> Fetched:
    """Download a version's bundle and weights.

    Raises:
        VerificationError: if it has no bundle.
        InputError: if its weights cannot be fetched.
    """
    bundle = scratch / "bundle"
    _download_bundle(version, bundle, uri)
    client = MlflowClient(tracking_uri=uri)  # it knows where a copied version's files are
    source = client.get_model_version_download_uri(version.name, str(version.version))
    return Fetched(bundle, _download(scratch / "model", uri, artifact_uri=source))


def problems_of(
    fetched: Fetched, version: ModelVersion, trusted_key: str | None
) -> tuple[list[str], Verification]:
    """Everything that speaks against a version's evidence, whatever its gate said."""
    found = verify_bundle(fetched.bundle, trusted_key, fetched.model)
    problems = [problem for finding in found.findings for problem in finding.problems]
    stated, evidence = version.tags.get(_EVIDENCE_TAG), fetched.bundle / EVIDENCE
    if evidence.is_file() and stated != sha256_file(evidence):
        problems.append(f"it was registered for other evidence ({_EVIDENCE_TAG} is {stated})")
    if found.evidence is not None and found.decision is not None:
        problems += _disagreements(version, found.evidence)
        base = fetched.model / "base"
        if base.is_dir() and weight_digests(base) != found.evidence.base_digests:
            problems.append("base: other weights than the base that was tested")
    if not found.sound and not problems:
        problems.append("its bundle could not be verified")
    return problems, found


def _disagreements(version: ModelVersion, evidence: Evidence) -> Iterator[str]:
    """What a version says of itself in the registry, and its evidence does not."""
    for tag, of in _TAGS.items():
        if version.tags.get(tag, of(evidence)) != of(evidence):
            yield f"its tag {tag} is {version.tags[tag]}, and its evidence says {of(evidence)}"
    name = RunConfig.model_validate(evidence.config).registered_model_name
    if version.name != name and COPIED_TAG not in version.tags:
        yield f"its evidence is for the registered model {name}, not {version.name}"


def check_reference(reference: str) -> re.Match[str]:
    """The parts of a reference: `name`, and `alias` or `version`.

    Raises:
        InputError: if it is none.
    """
    parts = _REFERENCE.fullmatch(reference)
    if parts is None:
        raise InputError(
            f"{shown(reference)} names no model version: write models:/<name>@<alias> or "
            "models:/<name>/<version>"
        )
    return parts


def find_version(client: MlflowClient, reference: str) -> ModelVersion:
    """The version that a reference names.

    Raises:
        InputError: if there is none.
    """
    parts = check_reference(reference)
    try:
        if parts["alias"] is not None:
            return client.get_model_version_by_alias(parts["name"], parts["alias"])
        return client.get_model_version(parts["name"], parts["version"])
    except MlflowException as error:
        raise InputError(f"{reference}: {one_line(error)}") from error


def _download_bundle(version: ModelVersion, folder: Path, uri: str) -> None:
    if not version.run_id:
        raise VerificationError(f"version {version.version}: refused: no run, so no evidence")
    for name in (*FILES, ATTESTATION):
        try:
            _download(folder, uri, run_id=version.run_id, artifact_path=name)
        except InputError as error:
            raise VerificationError(
                f"version {version.version}: refused: its run has no {name}: {error}"
            ) from error


def _download(folder: Path, uri: str, **what: str) -> Path:
    """Fetch into a folder; returns where the file or folder that was asked for lies."""
    folder.mkdir(exist_ok=True)
    try:
        return download(folder, uri, **what)
    except (MlflowException, OSError) as error:
        shown = what.get("artifact_path") or what.get("artifact_uri")
        raise InputError(f"{shown}: cannot be fetched: {error}") from error


def verified(
    reference: str, fetched: Fetched, version: ModelVersion, trusted_key: str | None
) -> Verification:
    """Findings about a version's evidence; its gate has passed.

    Raises:
        VerificationError: with everything that speaks against it.
    """
    problems, found = problems_of(fetched, version, trusted_key)
    if problems or found.decision is None:
        raise VerificationError("\n  ".join([f"{reference}: refused:", *problems]))
    if found.decision.outcome != "passed" or found.decision.dry_run:
        run = "a dry run" if found.decision.dry_run else found.decision.outcome
        raise VerificationError(f"{reference}: refused: the gate's outcome is {run}")
    return found


def _assemble(evidence: Evidence, fetched: Fetched, result: Path) -> None:
    """Copy what has been verified, and nothing else."""
    bundle, model = fetched
    shutil.copytree(bundle, result)
    shutil.copytree(model / ADAPTER_FOLDER, result / ADAPTER_FOLDER)
    base = model / "base"
    if base.is_dir():
        (result / "base").mkdir()
        for name in evidence.base_digests:
            shutil.copy(base / name, result / "base" / name)
        for path in (result / ADAPTER_FOLDER).iterdir():
            if not path.name.startswith("adapter_"):  # the tokenizer, which is saved beside it
                shutil.copy(path, result / "base")
    manifest = ModelManifest(
        base=evidence.model_base,
        revision=evidence.model_revision,
        base_digests=evidence.base_digests,
        adapter_digests=evidence.hardened_files,
        lineage=evidence.lineage,
        rejection=evidence.data.rejection,
    )
    write_json(result / "manifest.json", manifest.model_dump())


def _merge(evidence: Evidence, result: Path) -> None:
    from transformers.utils import logging

    logging.disable_progress_bar()
    logging.set_verbosity_error()
    loaded = load_artifact(result, RunConfig.model_validate(evidence.config).model)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # of transformers about itself
        loaded.model.save_pretrained(str(result / MERGED_FOLDER), safe_serialization=True)
    loaded.tokenizer.save_pretrained(str(result / MERGED_FOLDER))
