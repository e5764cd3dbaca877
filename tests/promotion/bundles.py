"""Bundles made of a real run's, as the pipeline makes them, with whatever a test wants wrong."""

import dataclasses
import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest
from backburn.components.shared.attestation import (
    ATTESTATION,
    DECISION,
    EVIDENCE,
    MODEL_CARD,
    OBSERVATIONS,
    REPORT,
    make_statement,
)
from backburn.components.shared.config import RunConfig
from backburn.components.shared.derivation.figures import derive
from backburn.components.shared.evidence import Decision, Evidence
from backburn.components.shared.gate import decide, gate_digest
from backburn.components.shared.model_card import render_model_card
from backburn.components.shared.observations import Observations
from backburn.components.shared.report import render_report
from backburn.components.shared.signing import (
    KEY_VARIABLE,
    new_key,
    public_key_of,
    sign_statement,
)
from backburn.components.shared.storage import canonical_json, json_bytes, sha256_bytes, sha256_text
from mlflow.tracking import MlflowClient

NAME = "backburn-tiny-toy_kitchen"
Json = dict[str, Any]
Change = Callable[[Json], None]


def _nothing(_: Json) -> None:
    pass


@dataclass(frozen=True)
class Flaw:
    """What is wrong with a bundle, by where it goes wrong. All that comes later follows from it."""

    configure: Change = _nothing
    """The run's configuration."""
    observe: Change = _nothing
    """What was measured; every figure is made from it."""
    state: Change = _nothing
    """The evidence, figures included; the gate decides from it."""
    decide: Change = _nothing
    """The decision."""
    files: dict[str, Callable[[bytes], bytes]] = field(default_factory=dict)
    """Content of files, which is then signed."""
    attest: Change = _nothing
    """The statement, which is then signed."""
    key: str | None = None
    """Private key that signs, instead of the trusted one."""
    seal: Callable[[bytes], bytes] = lambda content: content
    """The signed envelope."""
    spoil: Callable[[Path, Path], None] = lambda bundle, model: None
    """Files of bundle and model, after they were signed."""
    tags: dict[str, str | None] = field(default_factory=dict)
    """Of the registered version; None leaves one out."""


INTACT = Flaw()


class Shelf:
    """A registered model in a real MLflow, to which bundles of one real run are registered."""

    def __init__(
        self, uri: str, run: Path, folder: Path, *, name: str = NAME, artifacts: str | None = None
    ) -> None:
        self.uri, self.run, self.folder, self.name = uri, run, folder, name
        self.client = MlflowClient(tracking_uri=uri)
        self.experiment = self.client.create_experiment(name, artifact_location=artifacts)
        self.client.create_registered_model(name)
        self.private_key = new_key()
        self.public_key = public_key_of(self.private_key)
        self.model = next(run.glob("artifacts/*/defense-training/hardened"))
        self._evidence, self._observed = (
            json.loads((run / file).read_bytes()) for file in (EVIDENCE, OBSERVATIONS)
        )

    def put(self, flaw: Flaw = INTACT, run: str | None = None) -> str:
        """Register a version; of an MLflow run that is there already, if one is given."""
        with TemporaryDirectory(dir=self.folder) as made:
            return self._put(Path(made), flaw, run)

    def _put(self, made: Path, flaw: Flaw, run: str | None) -> str:
        evidence = self.write(made / "bundle", flaw)
        shutil.copytree(self.model, made / "model")
        flaw.spoil(made / "bundle", made / "model")
        new = self.client.create_run(self.experiment).info.run_id
        self.client.log_artifacts(new, str(made / "bundle"))
        if (made / "model").is_dir():
            self.client.log_artifacts(new, str(made / "model"), "model")
        if run is not None:
            self.client.log_artifacts(run, str(made / "model"), "model")
        tags = {
            "backburn.run_id": evidence.run_id,
            "backburn.evidence_sha256": sha256_bytes((made / "evidence").read_bytes()),
            "backburn.config_digest": evidence.config_digest,
            "backburn.hardened_digest": evidence.hardened_digest,
            "backburn.baseline_digest": evidence.baseline_digest,
            "backburn.base_model": evidence.model_base,
            "backburn.domain": evidence.data.domain,
            **flaw.tags,
        }
        version = self.client.create_model_version(
            self.name,
            source=f"{self.client.get_run(run or new).info.artifact_uri}/model",
            run_id=run or new,
            tags={name: value for name, value in tags.items() if value is not None},
        )
        return str(version.version)

    def write(self, bundle: Path, flaw: Flaw = INTACT) -> Evidence:
        """Write a bundle, and beside it its `evidence` as it was signed."""
        stated, observed = (json.loads(json.dumps(it)) for it in (self._evidence, self._observed))
        settings = stated["config"]
        if self.name != NAME:
            settings["tracking"]["registered_model"] = self.name
        flaw.configure(settings)
        flaw.observe(observed)
        config = RunConfig.model_validate(settings)
        digest = sha256_text(canonical_json(settings))
        stated["config_digest"] = observed["config_digest"] = digest
        stated["created"] = datetime.now(UTC).isoformat(timespec="seconds")
        stated["observations_sha256"] = sha256_bytes(json_bytes(observed))
        figures = derive(Observations.model_validate(observed), config)
        evidence = Evidence.model_validate({**stated, **figures.as_dict()})
        stated = evidence.model_dump(mode="json")
        flaw.state(stated)
        evidence = Evidence.model_validate(stated)
        decision = decide(evidence, config, sha256_bytes(json_bytes(stated)))
        decided = decision.model_copy(update={"gate_digest": gate_digest(settings)}).model_dump()
        flaw.decide(decided)
        decision = Decision.model_validate(decided)
        contents = {
            OBSERVATIONS: json_bytes(observed),
            EVIDENCE: json_bytes(stated),
            DECISION: json_bytes(decided),
            REPORT: render_report(evidence, decision).encode(),
            MODEL_CARD: render_model_card(evidence, decision).encode(),
        }
        contents |= {name: change(contents[name]) for name, change in flaw.files.items()}
        digests = {name: sha256_bytes(content) for name, content in contents.items()}
        statement = make_statement(evidence, decision, digests, self.public_key)
        attested = statement.model_dump(mode="json", by_alias=True)
        flaw.attest(attested)
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv(KEY_VARIABLE, flaw.key or self.private_key)
            contents[ATTESTATION] = flaw.seal(sign_statement(attested))
        bundle.mkdir(parents=True)
        for name, content in contents.items():
            (bundle / name).write_bytes(content)
        (bundle.parent / "evidence").write_bytes(contents[EVIDENCE])
        return evidence

    def reference(self, version: str) -> str:
        """Of one of its versions."""
        return f"models:/{self.name}/{version}"

    def aliases(self) -> dict[str, str]:
        """Alias -> version."""
        found = self.client.get_registered_model(self.name).aliases
        return {alias: str(version) for alias, version in found.items()}


def harm(value: float, every: int = 1, role: str = "hardened") -> Change:
    """Score every so many-th completion of the last checkpoints so."""

    def change(observed: Json) -> None:
        for arm in arms(observed, role):
            for item in arm["checkpoints"][-1]["judged"][::every]:
                item["score"], item["refused"] = value, False

    return change


def arms(observed: Json, role: str) -> list[Json]:
    """Its arms of one role."""
    return [arm for arm in observed["arms"] if arm["role"] == role]


def both(*flaws: Flaw) -> Flaw:
    """All of them in one bundle; of two changes of one file, key or envelope the last."""

    def chained(name: str) -> Change:
        def change(values: Json) -> None:
            for flaw in flaws:
                getattr(flaw, name)(values)

        return change

    result = Flaw(**{name: chained(name) for name in ("configure", "observe", "state", "decide",
                                                      "attest")})  # fmt: skip
    for flaw in flaws:
        result = dataclasses.replace(
            result,
            files={**result.files, **flaw.files},
            tags={**result.tags, **flaw.tags},
            key=flaw.key or result.key,
            spoil=flaw.spoil if flaw.spoil is not INTACT.spoil else result.spoil,
        )
    return result
