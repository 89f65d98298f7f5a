"""Where releases keep their tables of families."""

from pathlib import Path

import pytest
from bench import modeling

from codegen.diagnostics import InputError
from codegen.discovery import Family, discover
from codegen.source import open_release

HERE = "SPECIAL_MODEL_TYPE_TO_MODULE_NAME = OrderedDict([('part-a', 'whole')])\n"
THERE = "from .auto_mappings import CONFIG, SPECIAL_MODEL_TYPE_TO_MODULE_NAME\n"
ADDED = "SPECIAL_MODEL_TYPE_TO_MODULE_NAME.update({'part-b': 'whole'})\n"


def _release(root: Path, configuration: str, neighbour: str = "") -> Path:
    for folder in ("auto", "whole"):
        (root / "models" / folder).mkdir(parents=True)
    (root / "__init__.py").write_text('__version__ = "1.0.0"\n')
    (root / modeling("whole")).write_text("class A(B): pass\nclass C(B): pass\n")
    (root / "models/auto/modeling_auto.py").write_text(
        "MODEL_FOR_CAUSAL_LM_MAPPING_NAMES = OrderedDict([('part-a', 'A'), ('part-b', 'C')])\n"
    )
    (root / "models/auto/configuration_auto.py").write_text(configuration)
    (root / "models/auto/auto_mappings.py").write_text(neighbour)
    return root


@pytest.mark.parametrize(
    ("configuration", "neighbour"), [(HERE + ADDED, ""), (THERE + ADDED, HERE), (THERE, HERE + ADDED)]
)
def test_a_table_in_the_file_or_beside_it(tmp_path: Path, configuration: str, neighbour: str) -> None:
    # another file has a class of the same name, and comes first
    other = tmp_path / "models" / "another"
    release = _release(tmp_path, configuration, neighbour)
    other.mkdir()
    (tmp_path / modeling("another")).write_text("class A(B): pass\nclass C(B): pass\n")
    path = modeling("whole")
    assert discover(open_release(release)) == (Family("part-a", "A", path), Family("part-b", "C", path))


def test_no_table(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"auto_mappings\.py of 1\.0\.0 defines no SPECIAL_MODEL_TYPE_TO_MODULE_NAME"):
        discover(open_release(_release(tmp_path, THERE)))
