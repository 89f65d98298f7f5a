"""Completes Triton's interpreter where a test process was started with it, and counts the kernels that ran."""

import os
from collections import Counter
from collections.abc import Iterator

import pytest

from runtime.training.kernels import interpreter

if os.environ.get("TRITON_INTERPRET") == "1":
    interpreter.install()


@pytest.fixture
def launches() -> Iterator[Counter[str]]:
    """Launches by name of kernel, so that a test knows that the kernel, not upstream's arithmetic, gave the numbers."""
    with interpreter.launches() as counts:
        yield counts
