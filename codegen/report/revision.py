"""A revision of the project, read from git's own store: nothing is checked out."""

from __future__ import annotations

import subprocess
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from codegen.diagnostics import InputError


@dataclass(frozen=True)
class Revision:
    """``name`` as it was asked for, ``commit`` its full hash, ``files`` the generated tree's by relative path."""

    name: str
    commit: str
    files: Mapping[str, bytes]


def read_revision(root: Path, name: str) -> Revision:
    """The files that a revision of the project holds under the generated tree ``root``.

    Raises InputError when ``root`` is in no git repository, or the revision is unknown or holds no such tree.
    """
    root = root.resolve()
    inside = _run(root, "rev-parse", "--show-prefix")
    if inside.returncode:
        raise InputError(
            f"{root} is in no git repository that can be read, and --against names a revision of one: {_said(inside)}"
        )
    commit = _run(root, "rev-parse", "--verify", "--quiet", "--end-of-options", f"{name}^{{commit}}")
    if commit.returncode:
        raise InputError(f"{name} is not a revision of the repository that holds {root}")
    found = commit.stdout.decode().strip()
    prefix = inside.stdout.decode().strip()
    # names relative to the folder, and of what lies below it alone
    listed = _run(root, "ls-tree", "-r", "-z", "--name-only", found)
    paths = [path for path in listed.stdout.decode().split("\0") if path.endswith((".py", ".toml", ".md"))]
    if listed.returncode or not paths:
        raise InputError(f"{name} holds nothing under {prefix or root.name}")
    asked = "".join(f"{found}:{prefix}{path}\n" for path in paths)
    answer = _run(root, "cat-file", "--batch", input=asked.encode())
    if answer.returncode:
        raise InputError(f"git cannot read {name}: {_said(answer)}")
    return Revision(name, found, _contents(paths, answer.stdout))


def _contents(paths: list[str], batch: bytes) -> dict[str, bytes]:
    """Each object comes as a line ``<hash> <kind> <size>``, its content, and a newline."""
    result = {}
    at = 0
    for path in paths:
        end = batch.index(b"\n", at)
        size = int(batch[at:end].split()[2])
        result[path] = batch[end + 1 : end + 1 + size]
        at = end + 1 + size + 1
    return result


def _run(folder: Path, *arguments: str, input: bytes | None = None) -> subprocess.CompletedProcess[bytes]:
    try:
        return subprocess.run(["git", "-C", str(folder), *arguments], input=input, capture_output=True, check=False)
    except OSError as error:
        raise InputError(f"git cannot be started ({error.strerror}), and --against reads a revision with it") from None


def _said(ended: subprocess.CompletedProcess[bytes]) -> str:
    lines = ended.stderr.decode(errors="replace").strip().splitlines()
    return lines[0] if lines else f"git ended with {ended.returncode}"
