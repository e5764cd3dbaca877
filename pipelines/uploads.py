"""Compiled pipelines on a Kubeflow Pipelines server: one version for each content."""

import json
import tempfile
from pathlib import Path
from typing import Any, NamedTuple

import kfp
import kfp_server_api
import yaml
from backburn.components.shared.config import RunConfig
from backburn.components.shared.storage import canonical_json, sha256_text
from backburn.pipelines.compilation import compile_pipeline

DIGEST_CHARACTERS = 16
_EQUALS = 1


class Uploaded(NamedTuple):
    """A pipeline version on the server, and the parameters its runs get."""

    pipeline_id: str
    version_id: str
    version: str
    parameters: dict[str, Any]
    new: bool


def upload(client: kfp.Client, namespace: str | None, config: RunConfig) -> Uploaded:
    """Compile a configuration's pipeline and upload it, unless that content is there already.

    Args:
        client: Connected.
        namespace: Whose pipeline it is; None on a server without them.
        config: Of the runs.

    Returns:
        The version, and every parameter of the pipeline with the value that belongs to `config`.
    """
    with tempfile.TemporaryDirectory(prefix="backburn-upload-") as folder:
        package = compile_pipeline(config, Path(folder) / "pipeline.yaml")
        documents = list(yaml.safe_load_all(package.read_text(encoding="utf-8")))
        info = documents[0]["pipelineInfo"]
        name = info["name"]
        version = f"{name}-{sha256_text(canonical_json(documents))[:DIGEST_CHARACTERS]}"
        found = find_pipeline(client, namespace, name)
        if found is None:
            found = client.pipelines.pipeline_service_create_pipeline(
                kfp_server_api.V2beta1Pipeline(
                    name=name,
                    display_name=name,
                    description=info.get("description"),
                    namespace=namespace,
                )
            )
        pipeline_id = str(found.pipeline_id)
        present = client.list_pipeline_versions(
            pipeline_id, filter=equal("display_name", version)
        ).pipeline_versions
        made = (
            present[0]
            if present
            else client.upload_pipeline_version(str(package), version, pipeline_id=pipeline_id)
        )
    inputs = documents[0]["root"]["inputDefinitions"]["parameters"]
    parameters = {name: given["defaultValue"] for name, given in inputs.items()}
    identity = str(made.pipeline_version_id)
    return Uploaded(pipeline_id, identity, version, parameters, not present)


def find_pipeline(client: kfp.Client, namespace: str | None, name: str) -> Any | None:
    """The pipeline of a name, if there is one."""
    found = client.list_pipelines(namespace=namespace, filter=equal("display_name", name)).pipelines
    return found[0] if found else None


def equal(key: str, value: str) -> str:
    """A filter of the API: a field has a value."""
    predicate = {"operation": _EQUALS, "key": key, "stringValue": value}
    return json.dumps({"predicates": [predicate]})
