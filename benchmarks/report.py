"""How large a report on all families is, how long it takes to make, and how long a browser takes to open it.

    python benchmarks/report.py [--bump X.Y.Z] [--jobs N] [--json]

With ``--bump`` a copy of the project is moved to that release first, and reported on against what it was. Times are of
this machine and this moment: seconds of CPU, children included, and of the wall clock; the browser's are the best of
five, each in a fresh tab.
"""

import argparse
import json
import os
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from playwright.sync_api import Browser, sync_playwright

ROOT = Path(__file__).resolve().parent.parent
OPTIONS = ["--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-background-networking", "--disable-sync"]
# From the start of navigation to the frame in which the list, or the family, is on the screen.
LIST = "() => new Promise(done => requestAnimationFrame(() => setTimeout(() => done(performance.now()))))"
FAMILY = """name => new Promise(done => { const start = performance.now(); location.hash = '#/' + name;
  const look = () => document.querySelector('#name')?.textContent === name
    ? requestAnimationFrame(() => setTimeout(() => done(performance.now() - start))) : setTimeout(look); look(); })"""
SEARCH = """query => new Promise(done => { const start = performance.now();
  const box = document.querySelector('#search'); box.value = query; box.dispatchEvent(new Event('input'));
  requestAnimationFrame(() => setTimeout(() => done(performance.now() - start))); })"""


def _run(project: Path, *arguments: str) -> dict[str, float]:
    """A command of the copy of the compiler that a project has."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    started = time.perf_counter()
    command = [sys.executable, "-m", "codegen", *arguments]
    environment = {**os.environ, "PYTHONPATH": str(project)}
    done = subprocess.run(command, cwd=project, env=environment, capture_output=True, text=True, check=False)
    if done.returncode not in (0, 1):
        raise SystemExit(done.stderr)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    cpu = (after.ru_utime - before.ru_utime) + (after.ru_stime - before.ru_stime)
    return {"cpu_seconds": round(cpu, 1), "wall_seconds": round(time.perf_counter() - started, 1)}


def _copied(folder: Path) -> Path:
    """The project as it is, as the only commit of a repository."""
    project = folder / "project"
    left_out = shutil.ignore_patterns(".git", ".venv", "__pycache__", "*.egg-info", ".*_cache")
    shutil.copytree(ROOT, project, ignore=left_out)
    who = ["-c", "user.name=benchmark", "-c", "user.email=benchmark@localhost"]
    for arguments in (["init", "-q"], ["add", "-A"], [*who, "commit", "-q", "-m", "before"]):
        subprocess.run(["git", "-C", str(project), *arguments], check=True)
    return project


def _opened(browser: Browser, page: Path) -> dict[str, Any]:
    shown, families, searches = [], [], []
    for _ in range(5):
        tab = browser.new_page()
        tab.goto(page.as_uri(), wait_until="commit")
        tab.wait_for_selector("html[data-ready]", state="attached")
        shown.append(tab.evaluate(LIST))
        rows = tab.locator("tr[data-family]").count()
        longest = tab.evaluate(
            "() => [...document.querySelectorAll('tr[data-family]')].map(r => r.dataset.family).slice(0, 40)"
        )
        searches.append(tab.evaluate(SEARCH, "position_ids"))
        tab.evaluate(SEARCH, "")
        families.append(max(tab.evaluate(FAMILY, name) for name in longest))
        tab.close()
    return {
        "families": rows,
        "list_ms": round(min(shown)),
        "search_ms": round(min(searches)),
        "slowest_of_40_families_ms": round(min(families)),
    }


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--bump", help="also report on a move to this release")
    parser.add_argument("--jobs", default=str(os.cpu_count() or 1))
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    chromium = shutil.which("chromium") or shutil.which("google-chrome")
    if chromium is None:
        raise SystemExit("no Chromium on PATH")
    result: dict[str, dict[str, Any]] = {}
    with tempfile.TemporaryDirectory() as folder, sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=chromium, args=OPTIONS)
        project = _copied(Path(folder))
        pages: dict[str, tuple[str, ...]] = {"as it is": ()}
        if options.bump:
            pages[f"to {options.bump}"] = ("--against", "HEAD")
        for name, arguments in pages.items():
            if arguments:
                _run(project, "bump", options.bump, "--jobs", options.jobs)
            page = Path(folder) / f"{len(result)}.html"
            made = _run(project, "report", *arguments, "--out", str(page), "--jobs", options.jobs)
            result[name] = {"megabytes": round(page.stat().st_size / 1e6, 2), **made, **_opened(browser, page)}
        browser.close()
    if options.json:
        print(json.dumps(result, indent=2))
        return
    for name, row in result.items():
        print(f"{name}: " + ", ".join(f"{key.replace('_', ' ')} {value}" for key, value in row.items()))


if __name__ == "__main__":
    main()
