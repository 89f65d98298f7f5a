"""The one writer of a generated tree: compares first, then changes all of it or nothing.

`plan` says what a generation would change, by comparing bytes; `commit` makes it so. Every new text is first written,
with fsync, into a staging folder inside the root (the same file system), and only then renamed over its place. A full
or read-only disk, Ctrl-C or SIGTERM in the middle: what was renamed is put back, the same inodes with their times and
modes, and the tree is what it was. A killed process leaves the staging folder with a journal; the next `plan` or
`commit` finds it and finishes the way back (see `recover`).

Layout of the staging folder:

    .regraft-commit/new/<n>      the text of change n, until it is renamed to its place
    .regraft-commit/old/<n>      what change n replaced or removed: a second link to the same inode
    .regraft-commit/journal      the changes; it is there from the moment the tree may be touched ...
    .regraft-commit/committed    ... and gets this name once the tree is as planned

Files right beside the root can be part of a commit too, as a pin must change with what was generated for it: same
file system, same journal, same way back. Their paths are `../<name>`.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import shutil
import signal
import stat
import threading
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass, field
from hashlib import sha256
from pathlib import Path, PurePosixPath
from types import FrameType, MappingProxyType

try:
    import fcntl
except ImportError:  # no advisory locks on this platform: two writers at a time are then the user's to avoid
    fcntl = None  # type: ignore[assignment]

STAGING = ".regraft-commit"
"""Name of the staging folder. It exists only while a commit runs, or after one was killed."""

_UP = ".."
_NEW, _OLD, _JOURNAL, _COMMITTED = "new", "old", "journal", "committed"


class StoreError(Exception):
    """The tree could not be read or written. The message says what failed, why, and that the tree is as it was."""


@dataclass(frozen=True)
class Changes:
    """What a generation changes: paths relative to the root, `/` between parts, each group sorted.

    `orphaned` files are owned, exist, and are no longer generated; `commit` removes them. `texts` holds what will be
    written, `before` the digest of every file that the comparison saw (None: there was none).
    """

    created: tuple[str, ...] = ()
    updated: tuple[str, ...] = ()
    unchanged: tuple[str, ...] = ()
    orphaned: tuple[str, ...] = ()
    texts: Mapping[str, str] = field(default_factory=dict, repr=False)
    before: Mapping[str, str | None] = field(default_factory=dict, repr=False)

    def __bool__(self) -> bool:
        """Whether there is anything to do."""
        return bool(self.created or self.updated or self.orphaned)


def plan(
    root: Path, files: Mapping[str, str], owned: Collection[str], beside: Mapping[str, str] = MappingProxyType({})
) -> Changes:
    """Compares a generation with the tree and returns the difference; writes nothing.

    `files` are the texts by relative path (written as UTF-8, line ends as they are), `owned` the paths that earlier
    generations wrote, usually from the manifest, `beside` texts of files beside the root, by name. Other files are none
    of our business. The only case in which the tree is touched is a commit that was killed: its traces are removed
    first, see `recover`.

    Raises:
        StoreError: a path is not a plain relative path, or is taken by a folder or a link, or cannot be read.
    """
    recover(root)
    for path in (*files, *owned):
        if path.startswith(f"{_UP}/"):
            raise StoreError(f"{path!r} is not a plain relative path")
    files = {**files, **{f"{_UP}/{name}": text for name, text in beside.items()}}
    groups: dict[str, list[str]] = {"created": [], "updated": [], "unchanged": [], "orphaned": []}
    before: dict[str, str | None] = {}
    with _explained(root, "cannot compare the generated files", "nothing was written"):
        for path in sorted({*files, *owned}):
            now = _read(root, path)
            before[path] = _digest(now)
            if path not in files:
                if now is not None:
                    groups["orphaned"].append(path)
            elif now is None:
                groups["created"].append(path)
            elif now == files[path].encode():
                groups["unchanged"].append(path)
            else:
                groups["updated"].append(path)
    return Changes(
        created=tuple(groups["created"]),
        updated=tuple(groups["updated"]),
        unchanged=tuple(groups["unchanged"]),
        orphaned=tuple(groups["orphaned"]),
        texts={path: files[path] for path in (*groups["created"], *groups["updated"])},
        before=before,
    )


def commit(root: Path, changes: Changes) -> None:
    """Makes the tree what `changes` says, all of it or, on any error, nothing of it.

    Folders are made as needed (the root too) and removed if an orphan was the last thing in them. SIGINT, SIGTERM and
    SIGHUP wait until a safe point, the tree is put back, and then they act as usual; KeyboardInterrupt is raised again.

    Raises:
        StoreError: nothing was changed, because of the disk, because a file changed since `plan`, or because another
            process is writing. If even putting back failed, the message says so and the next `plan` tries again.
    """
    if not changes:
        return
    with _explained(root, "cannot write the generated files"), _interruptible() as checkpoint:
        made = _make_folder(root)
        try:
            with _locked(root):
                _recover_locked(root)
                _Commit(root, changes, checkpoint).run()
        except BaseException:
            for folder in made:
                with contextlib.suppress(OSError):
                    folder.rmdir()
            raise


def recover(root: Path) -> bool:
    """Puts back what a killed commit left half done; returns whether there was something to do.

    A commit that was killed before its last step is undone, one that was killed after it only loses its staging folder.

    Raises:
        StoreError: another process is in the middle of a commit, or the traces cannot be removed.
    """
    if not os.path.lexists(root / STAGING):
        return False
    with _explained(root, "cannot undo an interrupted run", f"its traces are in {root / STAGING}"), _locked(root):
        return _recover_locked(root)


def check_whole(root: Path) -> None:
    """Raises StoreError for a tree that a killed commit left half done, or that one is at work in: whoever read it
    would take new files for edited ones."""
    if os.path.lexists(root / STAGING / _JOURNAL):
        raise StoreError(
            f"{root} is half written: a run was killed there, or is still at it; the next regraft generate or"
            " regraft bump puts back what was there"
        )


# ---------------------------------------------------------------------------------------------------------- changes


@dataclass(frozen=True)
class _Step:
    """One file of a commit: number, path, and whether there is a new text and was an old one."""

    number: int
    path: str
    writes: bool
    replaces: bool


class _Commit:
    """One run of `commit`, under the lock."""

    def __init__(self, root: Path, changes: Changes, checkpoint: Callable[[], None]) -> None:
        self.root = root
        self.changes = changes
        self.checkpoint = checkpoint
        paths = [(path, True, False) for path in changes.created]
        paths += [(path, True, True) for path in changes.updated]
        paths += [(path, False, True) for path in changes.orphaned]
        self.steps = [_Step(number, *item) for number, item in enumerate(sorted(paths))]

    def run(self) -> None:
        staging = self.root / STAGING
        os.mkdir(staging)
        try:
            self._stage()
            for step in self.steps:
                self.checkpoint()
                self._apply(step)
            for folder in sorted({(self.root / step.path).parent for step in self.steps}):
                _sync_folder(folder)
            self.checkpoint()
            # The point of no return, one rename.
            os.rename(staging / _JOURNAL, staging / _COMMITTED)
        except BaseException:
            _undo(self.root)
            raise
        # From here on the tree is as planned, and whatever fails is left for the next run to clean up.
        with contextlib.suppress(OSError):
            _sync_folder(staging)
            _remove_empty_folders(self.root, self.changes.orphaned)
            shutil.rmtree(staging)

    def _stage(self) -> None:
        """Writes all new texts and the journal. Up to its last line the tree itself is not touched."""
        staging = self.root / STAGING
        os.mkdir(staging / _NEW)
        os.mkdir(staging / _OLD)
        for step in self.steps:
            self.checkpoint()
            place = self.root / step.path
            now = _read(self.root, step.path)
            if _digest(now) != self.changes.before.get(step.path):
                raise StoreError(f"{place} was changed by somebody else in the meantime; run the command again")
            if step.writes:
                mode = stat.S_IMODE(place.stat().st_mode) if step.replaces else None
                _write(staging / _NEW / str(step.number), self.changes.texts[step.path].encode(), mode)
        folders = _missing_folders(self.root, (step.path for step in self.steps if step.writes))
        journal = {
            "steps": [[step.number, step.path, step.writes, step.replaces] for step in self.steps],
            "folders": folders,
        }
        for folder in (staging / _NEW, staging / _OLD):
            _sync_folder(folder)
        # Written under another name first: a journal is either whole or not there.
        _write(staging / "journal.part", json.dumps(journal).encode(), None)
        os.rename(staging / "journal.part", staging / _JOURNAL)
        _sync_folder(staging)
        for name in folders:
            os.mkdir(self.root / name)

    def _apply(self, step: _Step) -> None:
        place = self.root / step.path
        new, old = (self.root / STAGING / kind / str(step.number) for kind in (_NEW, _OLD))
        if step.replaces and step.writes:
            _second_link(place, old)
        elif step.replaces:
            os.rename(place, old)
        if step.writes:
            os.replace(new, place)


def _recover_locked(root: Path) -> bool:
    staging = root / STAGING
    if not os.path.lexists(staging):
        return False
    if (staging / _COMMITTED).exists():
        shutil.rmtree(staging)
    else:
        _undo(root)
    return True


def _undo(root: Path) -> None:
    """Puts everything back that the journal names, in any state, any number of times; removes the staging folder."""
    staging = root / STAGING
    try:
        if (staging / _JOURNAL).exists():
            journal = json.loads((staging / _JOURNAL).read_bytes())
            for step in reversed([_Step(*fields) for fields in journal["steps"]]):
                place = root / step.path
                new, old = (staging / kind / str(step.number) for kind in (_NEW, _OLD))
                if step.replaces:
                    if old.exists():
                        # Renaming one link of an inode over another does nothing: then the step was not applied.
                        os.replace(old, place)
                elif not new.exists():
                    with contextlib.suppress(FileNotFoundError):
                        os.unlink(place)
            for name in reversed(journal["folders"]):
                _remove_if_empty(root / name)
        shutil.rmtree(staging)
    except (OSError, ValueError) as error:
        raise StoreError(
            f"an interrupted run could not be undone ({_reason(error)}); what it replaced is in {staging / _OLD}. "
            "Make the folder writable and run the command again, or restore the tree from version control and "
            "delete that folder"
        ) from error


# ------------------------------------------------------------------------------------------------------------ files


def _read(root: Path, path: str) -> bytes | None:
    """The bytes of a file of the tree, or right beside it, None if there is none."""
    parts = PurePosixPath(path).parts
    below = parts[1:] if len(parts) == 2 and parts[0] == _UP else parts
    if not below or path != "/".join(parts) or path.startswith("/") or _UP in below or below[0] == STAGING:
        raise StoreError(f"{path!r} is not a plain relative path")
    place = root
    for part in parts:
        place = place / part
        try:
            kind = place.lstat().st_mode
        except FileNotFoundError:
            return None
        if stat.S_ISLNK(kind):
            raise StoreError(f"{place} is a symbolic link; generated files and their folders must be real ones")
        if place != root / path and not stat.S_ISDIR(kind):
            raise StoreError(f"{place} is in the way: a folder is needed there")
    if not stat.S_ISREG(kind):
        raise StoreError(f"{place} is in the way: a file is to be generated there")
    return place.read_bytes()


def _digest(content: bytes | None) -> str | None:
    return None if content is None else sha256(content).hexdigest()


def _write(path: Path, content: bytes, mode: int | None) -> None:
    with open(path, "xb") as file:
        file.write(content)
        file.flush()
        if mode is not None:
            os.chmod(path, mode)
        os.fsync(file.fileno())


def _second_link(place: Path, old: Path) -> None:
    """Keeps a file under a second name: its inode where the file system can, else a copy with the same times."""
    try:
        os.link(place, old)
    except OSError as error:
        if error.errno not in (errno.EPERM, errno.EOPNOTSUPP, errno.ENOSYS, errno.EMLINK):
            raise
        part = old.with_suffix(".part")
        shutil.copy2(place, part)
        os.rename(part, old)


def _make_folder(folder: Path) -> list[Path]:
    """Makes a folder with its parents and returns the new ones, innermost first."""
    missing = []
    while not folder.exists():
        missing.append(folder)
        folder = folder.parent
    made: list[Path] = []
    try:
        for new in reversed(missing):
            new.mkdir()
            made.insert(0, new)
    except OSError:
        for new in made:
            new.rmdir()
        raise
    return made


def _missing_folders(root: Path, paths: Iterator[str]) -> list[str]:
    """The folders that paths need and that are not there, outermost first."""
    needed = {str(parent) for path in paths for parent in PurePosixPath(path).parents if str(parent) != "."}
    return [name for name in sorted(needed) if not (root / name).exists()]


def _remove_empty_folders(root: Path, orphans: Collection[str]) -> None:
    folders = {parent for path in orphans for parent in PurePosixPath(path).parents if str(parent) != "."}
    for folder in sorted(folders, reverse=True):
        _remove_if_empty(root / folder)


def _remove_if_empty(folder: Path) -> None:
    try:
        os.rmdir(folder)
    except OSError as error:
        if error.errno not in (errno.ENOENT, errno.ENOTEMPTY, errno.EEXIST):
            raise


def _sync_folder(folder: Path) -> None:
    """Makes renames in a folder durable, where the platform can open folders."""
    with contextlib.suppress(PermissionError, IsADirectoryError):
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        except OSError as error:
            if error.errno != errno.EINVAL:  # not supported for folders here
                raise
        finally:
            os.close(descriptor)


# ------------------------------------------------------------------------------------- errors, locks and interruptions


@contextlib.contextmanager
def _explained(root: Path, failed: str, state: str = "the tree is as it was") -> Iterator[None]:
    """Turns whatever the operating system says into a StoreError."""
    try:
        yield
    except OSError as error:
        raise StoreError(f"{failed} in {root}: {_reason(error)}; {state}") from error


def _reason(error: Exception) -> str:
    if not isinstance(error, OSError):
        return str(error)
    reason = {
        errno.ENOSPC: "the disk is full",
        errno.EDQUOT: "the disk quota is used up",
        errno.EROFS: "the disk is read-only",
        errno.EACCES: "no permission",
        errno.EPERM: "no permission",
    }.get(error.errno or 0, error.strerror or str(error))
    return f"{reason} ({error.filename})" if error.filename else reason


@contextlib.contextmanager
def _locked(root: Path) -> Iterator[None]:
    """Keeps other writers out. The lock is on the open folder: it ends with the process, however that ends."""
    if fcntl is None:
        yield
        return
    descriptor = os.open(root, os.O_RDONLY)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise StoreError(f"another process is writing to {root}; wait for it and run the command again") from None
        except OSError as error:
            if error.errno not in (errno.ENOLCK, errno.ENOTSUP, errno.ENOSYS):  # a file system without locks
                raise
        yield
    finally:
        os.close(descriptor)


_HELD_BACK = tuple(getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name))


class _Interrupted(BaseException):
    """A signal arrived during a commit. Never leaves this module: the signal is sent again instead."""


@contextlib.contextmanager
def _interruptible() -> Iterator[Callable[[], None]]:
    """Holds signals back until the yielded function is called, which raises if there was one.

    When the block is left, the signal's own handling is back in place and the signal is sent again, so that the process
    ends as it would have, only later. Signals that are ignored stay ignored. In a thread that is not the main one there
    is nothing to hold back.

    Raises:
        StoreError: the block was left early and the signal's handler returned.
    """
    arrived: list[int] = []

    def note(number: int, frame: FrameType | None) -> None:
        arrived.append(number)

    def checkpoint() -> None:
        if arrived:
            raise _Interrupted

    before = {}
    if threading.current_thread() is threading.main_thread():
        for number in _HELD_BACK:
            handler = signal.getsignal(number)
            if handler is not None and handler != signal.SIG_IGN:
                before[number] = handler
                signal.signal(number, note)
    stopped = False
    try:
        yield checkpoint
    except _Interrupted:
        stopped = True
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        if arrived:
            signal.raise_signal(arrived[0])
    if stopped:
        raise StoreError(f"interrupted by {signal.Signals(arrived[0]).name}; the tree is as it was")
