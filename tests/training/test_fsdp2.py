"""`fully_shard` under torchrun, two processes: padding removed or not, the losses are the same."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
TOLERANCE = 1e-5  # of a loss of about 5, in float32; measured: 1e-6
STEPS = 3


@pytest.mark.parametrize("model_type", ["llama", "mixtral"])
def test_sharded_training(model_type: str) -> None:
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    command += ["examples/train_fsdp2.py", "--model-type", model_type, "--steps", str(STEPS), "--json"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout.splitlines()[-1])
    assert len(found["patched"]) == len(found["unpatched"]) == STEPS
    assert found["largest_difference"] < TOLERANCE
    assert found["patched"][-1] < found["patched"][0], "it learns"
