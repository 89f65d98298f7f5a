"""Without any one rule, fact or check the compiler refuses, or the verifier fails, or a kernel does not run: no rule is
decoration, no check is blind.

The committed witnesses are checked here one by one; `search.py` finds them, and finds them anew when a rule, a check or
upstream changes.
"""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import witnesses
from evidence import confirm
from mutants import CHECKS, MUTATIONS
from search import INTERPRET
from texts import recorded

HERE = Path(__file__).parent


def test_everything_has_a_witness() -> None:
    assert sorted(witnesses.read()) == sorted(MUTATIONS), "run: python tests/mutation/search.py NAME"


@pytest.mark.parametrize("name", [name for name, mutation in MUTATIONS.items() if not mutation.kernel])
def test_its_absence_shows(name: str) -> None:
    confirm(name, witnesses.read()[name])


def test_kernels_do_not_run_without() -> None:
    """In a process of its own: the interpreter has to be chosen before triton is imported."""
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-p", "no:xdist"]
    result = _interpreted([*command, str(HERE / "interpreted_kernels.py")])
    assert result.returncode == 0, f"{result.stdout}\n{result.stderr}"


@pytest.mark.parametrize("rule", CHECKS)
def test_every_expectation_of_a_check_is_left_out(rule: str) -> None:
    refused = [d for c in recorded("rmpad") for _, diagnostics in c.refused for d in diagnostics if d.rule == rule]
    assert {d.expected for d in refused} == set(CHECKS[rule])


@pytest.mark.slow
@pytest.mark.parametrize("name", MUTATIONS)
def test_a_search_finds_a_witness(name: str) -> None:
    result = _interpreted([sys.executable, str(HERE / "search.py"), "--dry", name])
    assert result.returncode == 0, f"{result.stdout}\n{result.stderr}"


def _interpreted(command: list[str]) -> subprocess.CompletedProcess[str]:
    kept = {key: value for key, value in os.environ.items() if not key.startswith("PYTEST_")}
    return subprocess.run(command, env=kept | {INTERPRET: "1"}, capture_output=True, text=True, timeout=1800)
