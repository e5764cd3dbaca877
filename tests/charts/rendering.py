"""Rendering the chart, and the cases that are rendered: every switch on and off, and all on.

`python -m tests.charts.rendering FOLDER` writes every case into a folder, for scanners.
"""

import json
import subprocess
import sys
from functools import cache
from pathlib import Path
from typing import Any

import yaml

from tests.tools import helm

CHART = Path(__file__).parents[2] / "charts" / "backburn"
NAMESPACE, RELEASE = "team-a", "backburn"
Values = dict[str, Any]
Object = dict[str, Any]

INTERNET = [{"ipBlock": {"cidr": "0.0.0.0/0", "except": ["10.0.0.0/8"]}}]
PUBLIC_KEY = "-----BEGIN PUBLIC KEY-----\nMCowBQYDK2VwAyEA\n-----END PUBLIC KEY-----\n"
MLFLOW = {
    "enabled": True,
    "database": {"host": "postgres.databases", "existingSecret": "mlflow-database"},
    "artifacts": {
        "destination": "s3://mlflow/artifacts",
        "endpoint": "http://seaweedfs.kubeflow:8333",
        "existingSecret": "mlflow-s3",
    },
    "allowedHosts": ["mlflow.example.com:443"],
    "serviceAccount": {"annotations": {"eks.amazonaws.com/role-arn": "arn:aws:iam::1:role/mlflow"}},
    "nodeSelector": {"pool": "cpu"},
    "tolerations": [{"key": "cpu", "operator": "Exists", "effect": "NoSchedule"}],
}
JUDGE = {"enabled": True, "revision": "0123abc", "nodeSelector": {"pool": "gpu"}}
SCHEDULES = [
    {
        "name": "weekly",
        "pipeline": "harden",
        "recipe": "ours",
        "cron": "0 0 3 * * mon",
        "set": ["seed=3", "notification.webhooks=[]"],
        "experiment": "hardening",
        "maxConcurrency": 2,
        "catchUp": True,
        "paused": True,
    },
    {
        "name": "nightly",
        "pipeline": "audit",
        "recipe": "laptop",
        "cron": "@daily",
        "model": "models:/backburn-x@champion",
        "reportOnly": True,
        "paused": False,
    },
]
HOOKED = {
    "schedules": SCHEDULES,
    "recipes": {"ours": {"seed": 7, "domain": {"name": "cooking"}}},
    "gate": {"hardened_harm_max": 1.5, "dry_run": False},
    "publicKey": PUBLIC_KEY,
    "tracking": {"uri": "https://mlflow.example.com"},
}
MULTI_USER = {"multiUser": True, "auth": "serviceAccount"}
OPEN = {"to": INTERNET}
DIGEST = "sha256:" + "0" * 64

CASES: dict[str, Values] = {
    "default": {},
    "names and images": {
        "fullnameOverride": "hardening",
        "imagePullSecrets": [{"name": "registry"}],
        "images": {"tools": {"digest": DIGEST}, "task": {"digest": DIGEST}},
        "secret": {"existingSecret": "keys", "alsoRequired": ["HF_TOKEN"]},
    },
    "no hook": {"hook": {"enabled": False}},
    "nothing to upload": {"pipelines": []},
    "schedules": HOOKED,
    "several users": {**HOOKED, "kfp": MULTI_USER},
    "token and certificates": {
        "kfp": {
            "endpoint": "https://kubeflow.example.com/pipeline",
            "auth": "token",
            "existingSecret": "kfp-token",
            "caConfigMap": "ca",
        }
    },
    "no network policies": {"networkPolicy": {"enabled": False}},
    "hub, webhooks and a judge elsewhere": {
        "networkPolicy": {
            "hub": OPEN,
            "webhooks": OPEN,
            "judge": OPEN,
            "extraEgress": [{"to": INTERNET, "ports": [{"port": 5432, "protocol": "TCP"}]}],
        }
    },
    "judge": {"judge": JUDGE},
    "judge with cache": {"judge": JUDGE, "modelCache": {"enabled": True, "keep": True}},
    "judge with a claim": {"judge": JUDGE, "modelCache": {"existingClaim": "weights"}},
    "mlflow": {"mlflow": MLFLOW},
    "mlflow without migrations": {
        "mlflow": {**MLFLOW, "database": {**MLFLOW["database"], "migrate": False}}
    },
    "volumes": {
        "modelCache": {"enabled": True, "storageClass": "fast"},
        "workspace": {"enabled": True, "storageClass": "shared", "keep": True},
    },
    "quota": {"quota": {"enabled": True}},
    "kueue": {"kueue": {"enabled": True, "clusterQueue": "gpus"}},
    "train jobs": {"trainJobs": {"enabled": True, "serviceAccount": "default-editor"}},
    "no tests": {"test": {"enabled": False}},
    "nothing": {
        "hook": {"enabled": False},
        "networkPolicy": {"enabled": False},
        "test": {"enabled": False},
    },
    "everything": {
        **HOOKED,
        "kfp": {**MULTI_USER, "caConfigMap": "ca"},
        "networkPolicy": {"hub": OPEN, "webhooks": OPEN, "judge": OPEN},
        "judge": JUDGE,
        "mlflow": MLFLOW,
        "modelCache": {"enabled": True, "keep": True},
        "workspace": {"enabled": True},
        "quota": {"enabled": True},
        "kueue": {"enabled": True, "clusterQueue": "gpus"},
        "trainJobs": {"enabled": True},
        "imagePullSecrets": [{"name": "registry"}],
    },
}


def run_helm(major: int, command: list[str], values: Values) -> subprocess.CompletedProcess[str]:
    """Run Helm on the chart, with values as a file on its standard input."""
    arguments = [str(helm(major)), *command, str(CHART), "--namespace", NAMESPACE, "--values", "-"]
    return subprocess.run(arguments, input=json.dumps(values), capture_output=True, text=True)


def render(values: Values, major: int = 4) -> list[Object]:
    """The objects that `helm template` makes; hooks and tests among them."""
    return json.loads(_render(json.dumps(values), major))


@cache
def _render(values: str, major: int) -> str:
    done = run_helm(major, ["template", RELEASE], json.loads(values))
    assert done.returncode == 0, done.stderr
    return json.dumps([item for item in yaml.load_all(done.stdout, yaml.CSafeLoader) if item])


def refusal(values: Values) -> str:
    """What Helm says of values it refuses."""
    done = run_helm(4, ["template", RELEASE], values)
    assert done.returncode != 0, "it was rendered"
    return done.stderr


def named(objects: list[Object], kind: str, name: str) -> Object:
    """The one object of a kind and name."""
    found = [o for o in objects if (o["kind"], o["metadata"]["name"]) == (kind, name)]
    assert len(found) == 1, f"{len(found)} of {kind} {name}"
    return found[0]


def pod_specs(objects: list[Object]) -> dict[str, Object]:
    """Kind and name -> template of its pods."""
    return {
        f"{o['kind']} {o['metadata']['name']}": o["spec"]["template"]
        for o in objects
        if o["kind"] in ("Deployment", "Job")
    }


if __name__ == "__main__":
    for title, given in CASES.items():
        file = Path(sys.argv[1]) / title.replace(" ", "-").replace(",", "") / "objects.yaml"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(yaml.safe_dump_all(render(given)), encoding="utf-8")
