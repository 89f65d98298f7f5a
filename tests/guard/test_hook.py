"""The hook and the recipe that users copy: they parse, and what they run tells fresh variants from edited ones."""

import os
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).resolve().parents[2]
EDITED = "tarn_variants/qeff/modeling_tarn.py"


def _hook() -> dict[str, object]:
    (hook,) = yaml.safe_load((ROOT / ".pre-commit-hooks.yaml").read_text())
    assert isinstance(hook, dict)
    return hook


def _git(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    environment = {
        **os.environ,
        "PYTHONPATH": str(ROOT),
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
        "GIT_CONFIG_GLOBAL": os.devnull,
    }
    who = ["-c", "user.name=a", "-c", "user.email=a@b"]
    return subprocess.run(
        ["git", *who, *arguments], cwd=folder, env=environment, capture_output=True, text=True, check=False
    )


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    """A repository with a package of variants, whose commits run the hook's own entry."""
    shutil.copytree(ROOT / "examples/own_model", tmp_path, dirs_exist_ok=True)
    assert _git(tmp_path, "init", "--quiet").returncode == 0
    hook = tmp_path / ".git/hooks/pre-commit"
    hook.write_text(f"#!/bin/sh\nexec {shlex.join([*shlex.split(str(_hook()['entry'])), '--out', 'tarn_variants'])}\n")
    hook.chmod(0o755)
    assert _git(tmp_path, "add", "--all").returncode == 0
    return tmp_path


def test_fresh_variants_are_committed(repository: Path) -> None:
    done = _git(repository, "commit", "--message", "variants")
    assert done.returncode == 0, done.stderr


def test_an_edited_file_stops_the_commit_and_stays(repository: Path) -> None:
    text = (repository / EDITED).read_text() + "\nMINE = 1\n"
    (repository / EDITED).write_text(text)
    done = _git(repository, "commit", "--all", "--message", "variants")
    assert done.returncode != 0 and "hand-edited: qeff/modeling_tarn.py" in done.stdout + done.stderr
    assert (repository / EDITED).read_text() == text
    assert _git(repository, "log").returncode != 0, "nothing was committed"


@pytest.mark.parametrize("path", [EDITED, "tarn_variants/__init__.py"])
def test_a_commit_that_deletes_variants_is_stopped(repository: Path, path: str) -> None:
    assert _git(repository, "commit", "--message", "variants").returncode == 0
    assert _git(repository, "rm", "--quiet", path).returncode == 0
    done = _git(repository, "commit", "--message", "without")
    name = path.removeprefix("tarn_variants/")
    assert done.returncode != 0 and f"missing: {name}" in done.stdout + done.stderr


def test_the_hook_runs_whatever_a_commit_holds() -> None:
    """pre-commit shows a hook the files that are left: with a pattern, a commit of deletions alone would pass."""
    hook = _hook()
    assert hook["always_run"] is True and hook["pass_filenames"] is False and not {"files", "types"} & hook.keys()


def test_the_recipe_runs_the_check() -> None:
    workflow = yaml.safe_load((ROOT / "examples/ci/regraft.yml").read_text())
    steps = workflow["jobs"]["fresh"]["steps"]
    assert [step["run"] for step in steps if "run" in step][1] == "regraft check"
