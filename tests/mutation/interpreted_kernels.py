"""Without a rule or fact that stands for a kernel, the kernel is not launched. Run by `test_mutation.py`, in Triton's
interpreter.
"""

import pytest
import witnesses
from evidence import confirm
from mutants import MUTATIONS


@pytest.mark.parametrize("name", [name for name, mutation in MUTATIONS.items() if mutation.kernel])
def test_its_kernel_is_not_launched(name: str) -> None:
    witness = witnesses.read()[name]
    assert witness.kernel
    confirm(name, witness)
