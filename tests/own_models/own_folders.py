"""Folders with models of a user's, made from the example; and the command in this process."""

import contextlib
import io
import json
import shutil
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest

from codegen import __main__ as command
from codegen.emit import manifest

ROOT = Path(__file__).resolve().parents[2]
EXAMPLE = ROOT / "examples" / "own_model"
MODELING, CONFIGURATION, CONFIG = "modeling_tarn.py", "configuration_tarn.py", "config.json"
DONE, DIFFERENT, UNUSABLE = 0, 1, 2
DIGEST = manifest.compiler_digest()  # once: it reads every file of the compiler


@dataclass(frozen=True)
class Ended:
    """How a command ended."""

    code: int
    out: str
    err: str


def regraft(*arguments: object) -> Ended:
    """The command in this process."""
    out, err = io.StringIO(), io.StringIO()
    with pytest.MonkeyPatch.context() as patch, contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        patch.setattr(sys, "argv", ["regraft", *map(str, arguments)])
        patch.setattr(manifest, "compiler_digest", lambda: DIGEST)
        with pytest.raises(SystemExit) as ended:
            command.main()
    assert "Traceback" not in err.getvalue()
    return Ended(int(ended.value.code or 0), out.getvalue(), err.getvalue())


def remote_code(place: Path) -> Path:
    """The example's model, as it lies in a hub repository."""
    shutil.copytree(EXAMPLE / "tarn", place, ignore=shutil.ignore_patterns("__pycache__"))
    return place


def importable(root: Path, project: str = "acme") -> Path:
    """The same in a package of the user's, registered with upstream's auto classes; returns the model's folder."""
    folder = remote_code(root / project / "models" / "tarn")
    (folder / CONFIG).unlink()
    for package in (root / project, folder.parent):
        (package / "__init__.py").write_text("")
    (folder / "__init__.py").write_text(
        "from transformers import AutoConfig, AutoModelForCausalLM\n\n"
        "from .configuration_tarn import TarnConfig\n"
        "from .modeling_tarn import TarnForCausalLM\n\n"
        'AutoConfig.register("tarn", TarnConfig, exist_ok=True)\n'
        "AutoModelForCausalLM.register(TarnConfig, TarnForCausalLM, exist_ok=True)\n"
    )
    return folder


def edited(*changes: tuple[str, str], file: str = MODELING) -> Callable[[Path], None]:
    """Replaces texts that are there in one file of a folder."""

    def change(folder: Path) -> None:
        text = (folder / file).read_text("utf-8")
        for old, new in changes:
            assert old in text
            text = text.replace(old, new)
        (folder / file).write_text(text, "utf-8")

    return change


def without_auto_map(folder: Path) -> None:
    config = json.loads((folder / CONFIG).read_text("utf-8"))
    del config["auto_map"]
    (folder / CONFIG).write_text(json.dumps(config))


def tree(folder: Path) -> dict[str, bytes]:
    """Every file below a folder."""
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}
