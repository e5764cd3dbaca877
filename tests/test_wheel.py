"""The wheel holds what an installation needs, and nothing outside `backburn`."""

import subprocess
import sys
import zipfile
from pathlib import Path

ROOT = Path(__file__).parent.parent


def test_wheel_content(tmp_path: Path) -> None:
    subprocess.run(
        [sys.executable, "-m", "build", "--wheel", "--outdir", str(tmp_path), str(ROOT)],
        check=True,
        capture_output=True,
        timeout=300,
    )
    (wheel,) = tmp_path.glob("*.whl")
    names = zipfile.ZipFile(wheel).namelist()
    packages = {name.split("/")[0] for name in names}
    assert {name for name in packages if not name.endswith(".dist-info")} == {"backburn"}
    for needed in (
        "backburn/components/py.typed",
        "backburn/pipelines/py.typed",
        "backburn/pipelines/recipes/laptop.yaml",
        "backburn/components/shared/domains/benign.jsonl",
        "backburn/components/shared/domains/cooking/domain.yaml",
        "backburn/components/shared/domains/home_networking/calibration.jsonl",
        "backburn/components/shared/report/report.html",
        "backburn/components/shared/report/report.css",
        "backburn/components/rl_attack/component.py",
        "backburn/components/shared/utility/everyday.yaml",
        "backburn/components/shared/utility/everyday.jsonl",
    ):
        assert needed in names, needed
