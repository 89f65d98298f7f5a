"""Completes Triton's interpreter where a test process was started with it, and counts the kernels that ran."""

import os
from collections import Counter
from collections.abc import Iterator

import pytest

if os.environ.get("TRITON_INTERPRET") == "1":
    from runtime.training.kernels import interpreter

    interpreter.install()


@pytest.fixture
def launches(monkeypatch: pytest.MonkeyPatch) -> Iterator[Counter[str]]:
    """Launches by name of kernel, so that a test knows that the kernel, not upstream's arithmetic, gave the numbers."""
    from triton.runtime.interpreter import InterpretedFunction

    counts: Counter[str] = Counter()
    run = InterpretedFunction.run

    def counted(self, *args, **kwargs):
        counts[self.fn.__name__] += 1
        return run(self, *args, **kwargs)

    monkeypatch.setattr(InterpretedFunction, "run", counted)
    yield counts
