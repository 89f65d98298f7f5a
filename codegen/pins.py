"""Where a project says which release it is made for: ``pyproject.toml``, and ``constraints.txt`` where there is one."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import tomlkit
from packaging.requirements import InvalidRequirement, Requirement
from packaging.utils import canonicalize_name
from tomlkit.exceptions import TOMLKitError

from codegen.diagnostics import InputError
from codegen.source import PACKAGE, Release

PROJECT = "pyproject.toml"
CONSTRAINTS = "constraints.txt"


def moved(folder: Path, version: str) -> dict[str, str]:
    """The texts of the files of a folder that pin upstream, by name, with the pin moved to a version.

    Raises InputError when ``pyproject.toml`` cannot be read or pins no exact release.
    """
    texts = {PROJECT: _project(folder / PROJECT, version)}
    if (folder / CONSTRAINTS).exists():
        texts[CONSTRAINTS] = _constraints(folder / CONSTRAINTS, version)
    return texts


def conflicts(folder: Path, release: Release) -> tuple[str, ...]:
    """The lines of ``constraints.txt`` that do not go with what the release itself requires, each as a sentence.

    A source without metadata (a checkout) says nothing of what it requires. Raises InputError for metadata that cannot
    be read.
    """
    path = folder / CONSTRAINTS
    if not path.exists():
        return ()
    try:
        stated = [Requirement(line) for line in release.requirements]
    except InvalidRequirement as error:
        raise InputError(f"what {PACKAGE} {release.version} requires cannot be read: {error}") from None
    required: dict[str, list[Requirement]] = {}
    for requirement in stated:
        if requirement.marker is None or requirement.marker.evaluate({"extra": ""}):
            required.setdefault(canonicalize_name(requirement.name), []).append(requirement)
    found = []
    for line in _read(path).splitlines():
        try:
            pinned = Requirement(line.split(" #")[0].strip())
        except InvalidRequirement:
            continue
        exact = [s.version for s in pinned.specifier if s.operator == "=="]
        for needed in required.get(canonicalize_name(pinned.name), ()):
            if not all(needed.specifier.contains(version, prereleases=True) for version in exact):
                found.append(f"{CONSTRAINTS} has {pinned}, and {PACKAGE} {release.version} requires {needed}")
    return tuple(found)


def _project(path: Path, version: str) -> str:
    try:
        document = tomlkit.parse(_read(path))
    except TOMLKitError as error:
        raise InputError(f"{path} is damaged: {error}") from None
    found = False
    for requirements in _lists(document.unwrap(), document):
        for index, line in enumerate(requirements):
            changed = _pinned(str(line), version) if isinstance(line, str) else None
            if changed is not None:
                found = True
                if changed != line:
                    requirements[index] = changed
    if not found:
        raise InputError(
            f"{path} pins no {PACKAGE} ({PACKAGE}==X.Y.Z among the dependencies), so there is no pin to move"
        )
    return tomlkit.dumps(document)


def _lists(plain: dict[str, Any], document: Any) -> Iterator[Any]:
    """The document's lists of requirements: dependencies, extras, dependency groups."""
    project = plain.get("project", {})
    if "dependencies" in project:
        yield document["project"]["dependencies"]
    for extra in project.get("optional-dependencies", {}):
        yield document["project"]["optional-dependencies"][extra]
    for group in plain.get("dependency-groups", {}):
        yield document["dependency-groups"][group]


def _constraints(path: Path, version: str) -> str:
    lines = _read(path).splitlines(keepends=True)
    for index, line in enumerate(lines):
        requirement = line.split(" #")[0].strip()  # pip's comments begin after a blank
        changed = _pinned(requirement, version)
        if changed is not None:
            lines[index] = line.replace(requirement, changed, 1)
        elif _pinned(requirement.split(" --")[0].rstrip(" \\"), version) is not None:
            raise InputError(
                f"{path}:{index + 1}: the pin has options of pip's behind it (hashes?), which do not go with another"
                " release; write the file anew for that release, or leave the pin of it to pyproject.toml"
            )
    return "".join(lines)


def _pinned(line: str, version: str) -> str | None:
    """The requirement with its pin moved, its extras and marker kept; None when it is no exact pin of upstream."""
    try:
        requirement = Requirement(line)
    except InvalidRequirement:
        return None
    pins = list(requirement.specifier)
    if canonicalize_name(requirement.name) != PACKAGE or len(pins) != 1 or pins[0].operator != "==":
        return None
    return line.replace(str(pins[0].version), version, 1)


def _read(path: Path) -> str:
    try:
        return path.read_bytes().decode("utf-8")
    except FileNotFoundError:
        raise InputError(f"{path} does not exist; the pin is kept there") from None
    except OSError as error:
        raise InputError(f"cannot read {path}: {error.strerror}") from None
    except UnicodeDecodeError as error:
        raise InputError(f"{path} is not UTF-8 text ({error.reason})") from None
