"""report.html and comparison.html as a headless Chromium shows them, on a desk and on a phone."""

import json
import re
import shutil
import subprocess
from collections.abc import Callable
from html import unescape
from pathlib import Path
from typing import Any

import pytest
from made_runs import make_run, rows_of

Command = Callable[..., None]
BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome", "chrome"))), None)
pytestmark = pytest.mark.skipif(BROWSER is None, reason="no chromium or google-chrome in PATH: pages can't be opened")

EVIL = "<script>alert(1)</script>.jpeg"
WIDTHS = {"phone": 390, "desk": 1300}
# Each page in a frame of the screen's width; what the frames came to is left in the outer page's text.
FRAMES = """<!doctype html><pre></pre><script>
addEventListener("load", () => {
  const told = {};
  for (const frame of document.querySelectorAll("iframe")) {
    const page = frame.contentDocument, root = page.documentElement;
    const table = page.querySelector("#board"), facts = page.querySelector("table.facts");
    told[frame.id] = {
      width: root.clientWidth, needed: root.scrollWidth, text: page.body.innerText, scripts: page.scripts.length,
      requests: frame.contentWindow.performance.getEntriesByType("resource").map(entry => entry.name),
      drawn: [...page.images].every(image => image.complete && image.naturalWidth > 0), images: page.images.length,
      board: table && table.getBoundingClientRect().right, facts: facts && facts.getBoundingClientRect().right,
    };
    const ranks = () => [...table.tBodies[0].rows].map(row => row.cells[0].textContent.trim());
    const sort = table && table.querySelector("button.sort");
    if (sort) {
      told[frame.id].ranks = [ranks()];
      for (const _ of "12") {
        sort.click();
        told[frame.id].ranks.push(ranks());
      }
    }
  }
  document.querySelector("pre").textContent = JSON.stringify(told);
});
</script>"""


def opened(page: Path, tmp_path: Path) -> tuple[dict[str, dict[str, Any]], list[str]]:
    """{screen: what the page is there}, and the lines of the browser's console."""
    frames = [
        f'<iframe id="{name}" src="{page.name}" width="{width}" height="900" style="border:0"></iframe>'
        for name, width in WIDTHS.items()
    ]
    outer = page.with_name("frames.html")
    outer.write_text(FRAMES + "".join(frames))
    flags = (
        "--headless=new", "--no-sandbox", "--disable-gpu", "--hide-scrollbars", "--no-first-run",
        "--allow-file-access-from-files", "--host-resolver-rules=MAP * ~NOTFOUND", "--enable-logging=stderr", "--v=0",
        f"--user-data-dir={tmp_path / 'profile'}", "--virtual-time-budget=10000", "--dump-dom",
    )  # fmt: skip
    done = subprocess.run(
        [str(BROWSER), *flags, outer.as_uri()], capture_output=True, text=True, timeout=120, check=True
    )
    told = re.search(r"<pre>(.*?)</pre>", done.stdout, re.DOTALL)
    assert told and told[1], done.stderr
    return json.loads(unescape(told[1])), [line for line in done.stderr.splitlines() if "CONSOLE" in line]


def sound(screens: dict[str, dict[str, Any]], console: list[str]) -> None:
    """Nothing in the console, nothing fetched, every picture drawn, no page wider than its screen."""
    assert console == []
    assert set(screens) == set(WIDTHS)
    for name, page in screens.items():
        assert page["needed"] <= page["width"] == WIDTHS[name], name
        assert [url for url in page["requests"] if not url.startswith("data:")] == []
        assert page["drawn"] and page["images"]


@pytest.mark.pictures
def test_the_report_on_a_desk_and_on_a_phone(command: Command, tmp_path: Path) -> None:
    evil = rows_of()[-1] | {"path": EVIL, "label": 0, "logit": 9, "probability": 0.9999}
    run = make_run(tmp_path / "run", [*rows_of(), evil])
    told = json.loads((run / "run.json").read_text())
    told |= {"machine": {"system": "Linux-6.18.44-fc-v657-x86_64-with-glibc2.36-" + "x" * 60, "gpus": []}}
    (run / "run.json").write_text(json.dumps(told))
    command("evaluate", f"run={run}", "resamples=200")
    screens, console = opened(run / "report.html", tmp_path)
    sound(screens, console)
    for name, page in screens.items():
        assert EVIL in page["text"] and page["scripts"] == 0
        assert page["facts"] <= WIDTHS[name], "the facts are cut"


@pytest.mark.pictures
def test_the_comparison_on_a_desk_and_on_a_phone(command: Command, tmp_path: Path) -> None:
    evil = "<img src=x onerror=alert(1)>"
    for k, name in enumerate(("plain", evil, "baseline_2026-11-25_10-07-38")):
        run = make_run(tmp_path / "sweep" / name, rows_of(k), seed=k)
        with (run / ".hydra" / "config.yaml").open("a") as stream:
            stream.write(f"optimizer: {{_target_: torch.optim.Adam, learning_rate_of_the_head: {0.001 / (k + 1)}}}\n")
    command("compare", "runs=sweep", "resamples=200", "output=out")
    screens, console = opened(tmp_path / "out" / "comparison.html", tmp_path)
    sound(screens, console)
    assert all(evil in page["text"] and page["scripts"] == 1 for page in screens.values())
    assert screens["desk"]["board"] <= WIDTHS["desk"], "the leaderboard hides columns"
    best_first = ["1", "2", "3", "4"]
    assert screens["desk"]["ranks"] == [best_first, best_first, best_first[::-1]]  # as it comes, rising, falling


def test_a_page_that_asks_for_something_is_seen(tmp_path: Path) -> None:
    """The checks above can fail: a picture from elsewhere, a script that throws, a line that is too long."""
    page = tmp_path / "page.html"
    page.write_text('<img src="http://films.invalid/a.png"><p style="width:900px">x</p><script>nothing()</script>')
    screens, console = opened(page, tmp_path)
    assert any("nothing is not defined" in line for line in console)
    assert screens["phone"]["needed"] > screens["phone"]["width"] and not screens["phone"]["drawn"]
    assert screens["phone"]["requests"] == ["http://films.invalid/a.png"]
