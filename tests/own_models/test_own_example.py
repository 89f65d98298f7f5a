"""The worked example as it is run: generated, registered, in ONNX Runtime, trained, and verified."""

import json
import os
import subprocess
import sys
from pathlib import Path

import own_folders as own
import pytest

TOLERANCE = 1e-5  # of a loss of about 5, in float32; measured: 1e-6


def _run(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "HF_HOME": str(folder), "HF_HUB_OFFLINE": "1", "PYTHONPATH": str(own.ROOT)}
    return subprocess.run(
        [sys.executable, *arguments], cwd=own.ROOT, env=environment, capture_output=True, text=True, check=False
    )


def test_the_example(tmp_path: Path) -> None:
    before = own.tree(own.EXAMPLE / "tarn_variants")
    done = _run(tmp_path, "examples/own_model/run.py", "--steps", "3", "--json")
    assert done.returncode == 0, done.stderr[-2000:]
    found = json.loads(done.stdout)
    assert found["inference"]["tokens_equal"] and found["inference"]["logits_error"] < 1e-3
    assert found["training"]["largest_difference"] < TOLERANCE
    assert found["training"]["losses"][-1] < found["training"]["losses"][0]
    assert "TarnAttention x4 (rmpad)" in done.stderr, "it was patched"
    after = own.tree(own.EXAMPLE / "tarn_variants")
    assert {k: v for k, v in after.items() if not k.endswith(".pyc")} == {
        k: v for k, v in before.items() if not k.endswith(".pyc")
    }, "what is committed is fresh"


@pytest.mark.parametrize("target", ["qeff", "rmpad"])
def test_the_package_is_verified(tmp_path: Path, target: str) -> None:
    done = _run(
        tmp_path, "-m", "codegen", "verify", "--out", "examples/own_model/tarn_variants", "--target", target,
        "--cases", "default", "--jobs", "1", "--json",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]
    [result] = json.loads(done.stdout)
    assert result["family"] == "tarn" and result["status"] == "passed"
    stages = {check["stage"] for case in result["cases"] for check in case["checks"]}
    assert stages == ({"kv", "ort"} if target == "qeff" else {"packed", "liger"})


def test_a_wrong_variant_is_not_verified(tmp_path: Path) -> None:
    """The verification of a package looks at that package."""
    out = tmp_path / "tarn_wrong"
    assert own.regraft("generate", "--from", own.EXAMPLE / "tarn", "--out", out, "--jobs", 1).code == 0
    own.edited(("scaling=self.scaling", "scaling=self.scaling * 1.1"), file="qeff/modeling_tarn.py")(out)
    done = _run(
        tmp_path, "-m", "codegen", "verify", "--out", str(out), "--stages", "kv", "--cases", "default", "--jobs", "1",
        "--json",
    )  # fmt: skip
    assert done.returncode == 1, done.stderr[-2000:]
    assert json.loads(done.stdout)[0]["status"] == "failed"
