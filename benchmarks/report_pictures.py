"""How a report looks on a desktop, on a phone and on paper, in a real Chromium.

    python -m benchmarks.report_pictures runs/<id>/report.html pictures

Writes desktop.png, phone.png (390 pixels wide) and paper.pdf (A4), and fails if the page scrolls
sideways or a chart was not drawn. Chromium comes with the system (`apt-get install chromium`), not
from PyPI, so this is no test.
"""

import argparse
import html
import json
import re
import shutil
import subprocess
import tempfile
from pathlib import Path

_WIDTHS = {"desktop": 1280, "phone": 390}
_NAMES = ("chromium", "chromium-browser", "google-chrome")
_TALLEST = 16_000
_FLAGS = (
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
    "--disable-background-networking", "--disable-component-update", "--disable-sync",
    "--hide-scrollbars", "--allow-file-access-from-files", "--virtual-time-budget=20000",
)  # fmt: skip
# A window of Chromium has a least width; a frame is as narrow as it is told to be.
_FRAME = """<!doctype html><meta charset="utf-8"><style>body {{ margin: 0 }}</style>
<iframe src="{url}" width="{width}" height="{height}" style="border: 0; display: block"></iframe>
<script>
const frame = document.querySelector('iframe');
frame.onload = () => setTimeout(() => {{
  const page = frame.contentDocument;
  const plots = [...page.querySelectorAll('.plot')];
  document.title = JSON.stringify({{
    width: page.documentElement.scrollWidth,
    height: page.documentElement.scrollHeight,
    undrawn: plots.filter((plot) => !plot.querySelector('svg.main-svg')).map((plot) => plot.id),
  }});
}}, 5000);
</script>
"""


def main() -> None:
    """Take the pictures and check them."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("report", type=Path, help="a run's report.html")
    parser.add_argument("output", type=Path, help="folder for the pictures")
    parser.add_argument("--browser", help="default: chromium or google-chrome on the PATH")
    options = parser.parse_args()
    browser = options.browser or next(filter(None, map(shutil.which, _NAMES)), None)
    if browser is None:
        raise SystemExit("no Chromium: apt-get install chromium, or name one with --browser")
    if not options.report.is_file():
        raise SystemExit(f"{options.report}: no such file; give the report.html of a finished run")
    options.output.mkdir(parents=True, exist_ok=True)
    faults = []
    for name, width in _WIDTHS.items():
        seen = picture(browser, options.report, options.output / f"{name}.png", width)
        print(f"{name}: {seen['width']} x {seen['height']} pixels")
        if seen["width"] > width:
            faults.append(f"{name}: the page is {seen['width']} pixels wide, the screen {width}")
        if seen["undrawn"]:
            faults.append(f"{name}: not drawn: {', '.join(seen['undrawn'])}")
    paper = options.output / "paper.pdf"
    _chromium(browser, options.report.resolve().as_uri(), f"--print-to-pdf={paper.resolve()}")
    print(f"pictures in {options.output}")
    if faults:
        raise SystemExit("\n".join(faults))


def picture(browser: str, report: Path, output: Path, width: int) -> dict[str, int | list[str]]:
    """Photograph a page at a width; returns its measured size and the charts that are missing."""
    with tempfile.TemporaryDirectory(prefix="backburn-pictures-") as folder:
        frame = Path(folder) / "frame.html"

        def show(height: int) -> str:
            url = html.escape(report.resolve().as_uri())
            frame.write_text(_FRAME.format(url=url, width=width, height=height), encoding="utf-8")
            return frame.as_uri()

        document = _chromium(browser, show(900), "--dump-dom")
        found = re.search(r"<title>(\{.*?\})</title>", document)
        if found is None:
            raise SystemExit(f"{report}: Chromium did not open it")
        seen: dict[str, int | list[str]] = json.loads(html.unescape(found[1]))
        height = min(_TALLEST, int(str(seen["height"])))
        _chromium(
            browser,
            show(height),
            f"--screenshot={output.resolve()}",
            f"--window-size={max(width, 500)},{height}",
        )
    return seen


def _chromium(browser: str, url: str, *flags: str) -> str:
    with tempfile.TemporaryDirectory(prefix="backburn-chromium-") as profile:
        done = subprocess.run(
            [browser, *_FLAGS, f"--user-data-dir={profile}", *flags, url],
            capture_output=True,
            text=True,
            timeout=180,
            check=True,
        )
    return done.stdout


if __name__ == "__main__":
    main()
