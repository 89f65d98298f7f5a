"""Small releases in folders, cut from the installed one, and the command in this process."""

import contextlib
import io
import json
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from codegen import __main__ as command
from codegen.discovery import discover
from codegen.source import installed

HEADS = {"glm": "GlmForCausalLM", "llama": "LlamaForCausalLM", "phi": "PhiForCausalLM"}
IMPORTED = ("masking_utils.py", "modeling_rope_utils.py", "activations.py", "utils/generic.py")
PIN = """[project]
name = "engine"
version = "1"
dependencies = [
    "torch>=2",  # any
    "transformers==1.0.0",
]

[project.optional-dependencies]
extra = ["Transformers[torch] == 1.0.0; python_version > '3'", "transformers-stream>=1"]
"""
CONSTRAINTS = "# exact\ntorch==2.13.0\ntransformers==1.0.0  # the pin\ntransformers-stream==1.0.0\n"


def modeling(family: str) -> str:
    return f"models/{family}/modeling_{family}.py"


def write_release(root: Path, version: str, heads: Mapping[str, str]) -> Path:
    """A folder with upstream's files of some families, and an auto mapping that names them."""
    release = installed()
    known = {f.model_type: f for f in discover(release)}
    for family in heads:
        assert known[family].path == modeling(family)
        _write(root / modeling(family), release.text(modeling(family)))
    for path in IMPORTED:
        _write(root / path, release.text(path))
    _write(root / "__init__.py", f'__version__ = "{version}"\n')
    _write(root / "models/auto/configuration_auto.py", "SPECIAL_MODEL_TYPE_TO_MODULE_NAME = OrderedDict([])\n")
    pairs = list(heads.items())
    _write(root / "models/auto/modeling_auto.py", f"MODEL_FOR_CAUSAL_LM_MAPPING_NAMES = OrderedDict({pairs!r})\n")
    return root


def _write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, "utf-8")


def rewrite(root: Path, family: str, *changes: tuple[str, str]) -> None:
    """Changes a family's text; what is to be changed must be there."""
    path = root / modeling(family)
    text = path.read_text("utf-8")
    for before, after in changes:
        assert before in text, before
        text = text.replace(before, after)
    path.write_text(text, "utf-8")


@dataclass(frozen=True)
class Ended:
    """How a command ended."""

    code: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        return json.loads(self.out)


def run(*arguments: object) -> Ended:
    out, err = io.StringIO(), io.StringIO()
    with pytest.MonkeyPatch.context() as patch, contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        patch.setattr(sys, "argv", ["regraft", *map(str, arguments)])
        with pytest.raises(SystemExit) as ended:
            command.main()
    assert "Traceback" not in err.getvalue()
    return Ended(int(ended.value.code or 0), out.getvalue(), err.getvalue())


def contents(root: Path) -> dict[str, tuple[bytes, int, int]]:
    """Every file below a folder with its bytes, inode and time: untouched means all three."""
    return {
        path.relative_to(root).as_posix(): (path.read_bytes(), path.stat().st_ino, path.stat().st_mtime_ns)
        for path in sorted(root.rglob("*"))
        if path.is_file()
    }
