"""The store changes a tree completely or not at all, whatever goes wrong."""

import errno
import fcntl
import json
import os
import signal
import subprocess
import sys
import textwrap
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from codegen import store
from codegen.store import STAGING, Changes, StoreError, commit, plan, recover

OLD = {"a.py": "a = 1\n", "b.py": "b = 1\n", "sub/c.py": "c = 1\n", "sub/only/d.py": "d = 1\n", "mine.txt": "mine\n"}
NEW = {"a.py": "a = 2\n", "b.py": "b = 1\n", "sub/c.py": "c = 2\n", "new/deep/e.py": "e = 'ü'\n", "f.py": "f = 1\n"}
OWNED = ("a.py", "b.py", "sub/c.py", "sub/only/d.py", "gone.py")
AFTER = {**NEW, "mine.txt": "mine\n"}


def tree(root: Path) -> dict[str, str]:
    return {
        path.relative_to(root).as_posix(): path.read_text(encoding="utf-8")
        for path in sorted(root.rglob("*"))
        if path.is_file() and STAGING not in path.parts
    }


def everything(root: Path) -> dict[str, tuple[object, ...]]:
    """All there is to see: folders, inodes, modes, times of files, bytes."""
    seen: dict[str, tuple[object, ...]] = {}
    for path in sorted([root, *root.rglob("*")]):
        status = path.lstat()
        if path.is_dir():
            seen[str(path)] = (status.st_ino, status.st_mode)
        else:
            seen[str(path)] = (status.st_ino, status.st_mode, status.st_mtime_ns, status.st_nlink, path.read_bytes())
    return seen


@pytest.fixture
def root(tmp_path: Path) -> Path:
    root = tmp_path / "generated"
    for name, text in OLD.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text, encoding="utf-8")
    return root


def test_plan_compares_bytes_and_writes_nothing(root: Path) -> None:
    before = everything(root)
    changes = plan(root, NEW, OWNED)
    assert changes.created == ("f.py", "new/deep/e.py")
    assert changes.updated == ("a.py", "sub/c.py")
    assert changes.unchanged == ("b.py",)
    assert changes.orphaned == ("sub/only/d.py",)
    assert changes
    assert everything(root) == before


def test_commit_makes_the_tree_what_was_planned(root: Path) -> None:
    untouched = everything(root)[str(root / "b.py")]
    commit(root, plan(root, NEW, OWNED))
    assert tree(root) == AFTER
    assert everything(root)[str(root / "b.py")] == untouched
    assert not (root / "sub/only").exists()
    assert not (root / STAGING).exists()
    again = plan(root, NEW, NEW)
    assert not again and again.unchanged == tuple(sorted(NEW))


def test_line_ends_are_compared_and_kept(root: Path) -> None:
    (root / "a.py").write_bytes(b"a = 2\r\n")
    changes = plan(root, {"a.py": "a = 2\n"}, ())
    assert changes.updated == ("a.py",)
    commit(root, changes)
    assert (root / "a.py").read_bytes() == b"a = 2\n"


def test_the_root_is_made_when_needed(tmp_path: Path) -> None:
    root = tmp_path / "not" / "yet"
    changes = plan(root, NEW, OWNED)
    assert changes.created == tuple(sorted(NEW))
    commit(root, changes)
    assert tree(root) == NEW


def test_nothing_to_do_touches_nothing(root: Path) -> None:
    before = everything(root)
    changes = plan(root, {"b.py": OLD["b.py"]}, ("b.py",))
    assert not changes
    commit(root, changes)
    commit(root / "missing", Changes())
    assert everything(root) == before and not (root / "missing").exists()


def test_modes_of_updated_files_stay(root: Path) -> None:
    (root / "a.py").chmod(0o755)
    commit(root, plan(root, NEW, OWNED))
    assert (root / "a.py").stat().st_mode & 0o777 == 0o755


@pytest.mark.parametrize("path", ["/etc/x", "../x", "a/../../x", "", ".", "a//b", f"{STAGING}/new/0"])
def test_paths_outside_the_root_are_refused(root: Path, path: str) -> None:
    with pytest.raises(StoreError, match="plain relative path"):
        plan(root, {path: ""}, ())


def test_what_is_in_the_way_is_named(root: Path) -> None:
    with pytest.raises(StoreError, match=r"sub is in the way: a file"):
        plan(root, {"sub": ""}, ())
    with pytest.raises(StoreError, match=r"a\.py is in the way: a folder"):
        plan(root, {"a.py/x": ""}, ())
    (root / "link").symlink_to(root.parent)
    with pytest.raises(StoreError, match="symbolic link"):
        plan(root, {"link/x": ""}, ())


def test_an_edit_after_plan_is_not_overwritten(root: Path) -> None:
    changes = plan(root, NEW, OWNED)
    (root / "sub/c.py").write_text("edited\n")
    before = everything(root)
    with pytest.raises(StoreError, match=r"sub/c\.py was changed by somebody else"):
        commit(root, changes)
    assert everything(root) == before


# ----------------------------------------------------------------------------------------------------- things that fail


class Failure:
    """Replaces functions of `os` by ones that raise once, at the nth call counted over all of them."""

    NAMES = ("rename", "replace", "link", "mkdir", "fsync", "unlink", "rmdir")

    def __init__(self, monkeypatch: pytest.MonkeyPatch, nth: int, error: Callable[[], BaseException]) -> None:
        self.calls = 0
        self.raised = False
        for name in self.NAMES:
            monkeypatch.setattr(store.os, name, self._wrapped(getattr(os, name), nth, error))

    def _wrapped(self, function: Callable[..., object], nth: int, error: Callable[[], BaseException]) -> object:
        def wrapped(*args: object, **kwargs: object) -> object:
            self.calls += 1
            if self.calls == nth:
                self.raised = True
                raise error()
            return function(*args, **kwargs)

        return wrapped


def _count_calls(root: Path, monkeypatch: pytest.MonkeyPatch) -> int:
    with monkeypatch.context() as patched:
        failure = Failure(patched, -1, AssertionError)
        commit(root, plan(root, NEW, OWNED))
    return failure.calls


ERRORS: dict[str, Callable[[], BaseException]] = {
    "the disk is full": lambda: OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)),
    "the disk is read-only": lambda: OSError(errno.EROFS, os.strerror(errno.EROFS)),
    "Ctrl-C": KeyboardInterrupt,
}


@pytest.mark.parametrize("reason", ERRORS)
def test_failure_at_every_single_call_leaves_the_tree_as_it_was(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, reason: str
) -> None:
    def fresh(name: str) -> Path:
        root = tmp_path / name / "generated"
        for path, text in OLD.items():
            (root / path).parent.mkdir(parents=True, exist_ok=True)
            (root / path).write_text(text, encoding="utf-8")
        return root

    total = _count_calls(fresh("count"), monkeypatch)
    assert total > 20
    undone = 0
    for nth in range(1, total + 1):
        root = fresh(str(nth))
        before = everything(root)
        changes = plan(root, NEW, OWNED)
        with monkeypatch.context() as patched:
            failure = Failure(patched, nth, ERRORS[reason])
            try:
                commit(root, changes)
            except StoreError as error:
                assert reason in str(error) and "as it was" in str(error)
            except KeyboardInterrupt:
                assert reason == "Ctrl-C"
            assert failure.raised
        if tree(root) == AFTER:
            # Failed while cleaning up, after the last step: then everything is written, and the next run cleans up.
            assert nth > total - 10
            assert not plan(root, NEW, NEW)
            assert tree(root) == AFTER and not (root / STAGING).exists()
        else:
            assert everything(root) == before, f"call {nth} of {total}"
            undone += 1
    assert undone >= total - 10


def test_a_full_disk_while_writing_is_explained(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = everything(root)
    changes = plan(root, NEW, OWNED)
    written = 0

    def full(path: Path, content: bytes, mode: int | None) -> None:
        nonlocal written
        written += 1
        if written == 3:
            path.write_bytes(content[:1])  # some of it fits
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))
        path.write_bytes(content)

    monkeypatch.setattr(store, "_write", full)
    with pytest.raises(StoreError, match=r"cannot write the generated files in .*: the disk is full .*as it was"):
        commit(root, changes)
    assert everything(root) == before


def test_a_root_that_was_made_is_removed_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    changes = plan(tmp_path / "x" / "y", NEW, ())
    Failure(monkeypatch, 8, ERRORS["the disk is full"])
    with pytest.raises(StoreError):
        commit(tmp_path / "x" / "y", changes)
    assert list(tmp_path.iterdir()) == []


def test_a_read_only_tree_is_explained(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    changes = plan(root, NEW, OWNED)
    root.chmod(0o555)
    try:
        if os.access(root, os.W_OK):  # the superuser may write anyway

            def forbidden(path: Path) -> None:
                raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(path))

            monkeypatch.setattr(store.os, "mkdir", forbidden)
        with pytest.raises(StoreError, match="no permission"):
            commit(root, changes)
    finally:
        root.chmod(0o755)
    assert tree(root) == OLD


def test_if_undoing_fails_too_the_next_run_undoes(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = everything(root)
    changes = plan(root, NEW, OWNED)
    replace, calls = os.replace, 0

    def broken(source: Path, target: Path) -> None:
        nonlocal calls
        calls += 1
        if calls > 2:
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        replace(source, target)

    with monkeypatch.context() as patched:
        patched.setattr(store.os, "replace", broken)
        with pytest.raises(StoreError, match=r"could not be undone .*what it replaced is in"):
            commit(root, changes)
    assert tree(root) != OLD
    assert recover(root)
    assert everything(root) == before
    assert not recover(root)


def test_without_hard_links_copies_are_kept(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def no_links(source: Path, target: Path) -> None:
        raise OSError(errno.EPERM, os.strerror(errno.EPERM))

    monkeypatch.setattr(store.os, "link", no_links)
    changes = plan(root, NEW, OWNED)
    replace, calls = os.replace, 0

    def third_fails(source: Path, target: Path) -> None:
        nonlocal calls
        calls += 1
        if calls == 3:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        replace(source, target)

    with monkeypatch.context() as patched:
        patched.setattr(store.os, "replace", third_fails)
        with pytest.raises(StoreError):
            commit(root, changes)
    assert tree(root) == OLD
    commit(root, changes)
    assert tree(root) == AFTER


# ------------------------------------------------------------------------------------------------- signals and kills


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_signals_undo_and_then_act(root: Path, monkeypatch: pytest.MonkeyPatch, number: signal.Signals) -> None:
    class Handled(BaseException):
        pass

    def handler(received: int, frame: object) -> None:
        # When the signal acts, the tree is in order.
        assert tree(root) == OLD and not (root / STAGING).exists()
        raise Handled(received)

    before = everything(root)
    changes = plan(root, NEW, OWNED)
    replace = os.replace

    def signalled(source: Path, target: Path) -> None:
        replace(source, target)
        signal.raise_signal(number)

    previous = signal.signal(number, handler)
    try:
        with monkeypatch.context() as patched:
            patched.setattr(store.os, "replace", signalled)
            with pytest.raises(Handled):
                commit(root, changes)
        assert signal.getsignal(number) is handler
    finally:
        signal.signal(number, previous)
    assert everything(root) == before


def test_a_signal_handler_that_returns_does_not_make_it_a_success(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []
    replace = os.replace

    def signalled(source: Path, target: Path) -> None:
        replace(source, target)
        signal.raise_signal(signal.SIGTERM)

    previous = signal.signal(signal.SIGTERM, lambda number, frame: seen.append(number))
    try:
        changes = plan(root, NEW, OWNED)
        with monkeypatch.context() as patched:
            patched.setattr(store.os, "replace", signalled)
            with pytest.raises(StoreError, match="interrupted by SIGTERM; the tree is as it was"):
                commit(root, changes)
    finally:
        signal.signal(signal.SIGTERM, previous)
    assert seen == [signal.SIGTERM]
    assert tree(root) == OLD


def test_commit_works_outside_the_main_thread(root: Path) -> None:
    changes = plan(root, NEW, OWNED)
    thread = threading.Thread(target=commit, args=(root, changes))
    thread.start()
    thread.join()
    assert tree(root) == AFTER


CHILD = textwrap.dedent(
    """
    import json, os, signal, sys
    from pathlib import Path
    from codegen import store

    signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background jobs ignore it
    root, new, owned, name, nth, number = json.loads(sys.argv[1])
    changes = store.plan(Path(root), new, owned)
    function, calls = getattr(os, name), 0

    def killing(*args, **kwargs):
        global calls
        result = function(*args, **kwargs)
        calls += 1
        if calls == nth:
            os.kill(os.getpid(), number)
        return result

    setattr(os, name, killing)
    store.commit(Path(root), changes)
    """
)


def _killed(root: Path, name: str, nth: int, number: signal.Signals) -> int:
    arguments = json.dumps([str(root), NEW, OWNED, name, nth, number])
    repository = str(Path(store.__file__).parents[1])
    environment = {**os.environ, "PYTHONPATH": repository}
    return subprocess.run(
        [sys.executable, "-c", CHILD, arguments], env=environment, stderr=subprocess.DEVNULL
    ).returncode


KILLS = [
    ("mkdir", 1),
    ("fsync", 2),
    ("rename", 1),
    ("mkdir", 4),
    ("replace", 1),
    ("replace", 3),
    ("link", 2),
    ("rename", 2),
]


@pytest.mark.parametrize(("name", "nth"), KILLS)
def test_the_run_after_a_kill_restores_the_tree(root: Path, name: str, nth: int) -> None:
    before = everything(root)
    assert _killed(root, name, nth, signal.SIGKILL) == -signal.SIGKILL
    assert (root / STAGING).exists()
    changes = plan(root, NEW, OWNED)
    assert everything(root) == before
    commit(root, changes)
    assert tree(root) == AFTER


def test_a_kill_after_the_last_step_has_written_everything(root: Path) -> None:
    assert _killed(root, "rename", 3, signal.SIGKILL) == -signal.SIGKILL
    assert (root / STAGING / "committed").exists()
    changes = plan(root, NEW, NEW)
    assert not changes
    assert tree(root) == AFTER


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_terminated_process_leaves_the_tree_as_it_was(root: Path, number: signal.Signals) -> None:
    before = everything(root)
    code = _killed(root, "replace", 2, number)
    assert code in (-number, 1)  # Python turns SIGINT into KeyboardInterrupt
    assert everything(root) == before


def test_two_writers_exclude_each_other(root: Path) -> None:
    changes = plan(root, NEW, OWNED)
    descriptor = os.open(root, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        with pytest.raises(StoreError, match="another process is writing"):
            commit(root, changes)
        (root / STAGING).mkdir()  # theirs
        with pytest.raises(StoreError, match="another process is writing"):
            plan(root, NEW, OWNED)
        assert (root / STAGING).exists()
    finally:
        os.close(descriptor)
    assert plan(root, NEW, OWNED) == changes
