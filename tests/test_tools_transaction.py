"""What is left of a tree when writing to it goes wrong half-way."""

from __future__ import annotations

import errno
import fcntl
import os
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from toytree import HOOKED, OWN, make_overlay, make_pins, make_tree, snapshot
from turboprefill.tools import patcher
from turboprefill.tools.errors import RefusedError
from turboprefill.tools.transaction import Transaction, transaction

PINS = make_pins()
N_FILES = 6  # three hooked, three own


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    tree = make_tree(tmp_path / "llama.cpp")
    (tree / HOOKED[0]).chmod(0o755)
    return tree


def failing(real: Callable[..., None], at: int, error: BaseException, *, late: bool) -> Callable[..., None]:
    """``real``, which raises at its ``at``-th call, before or after doing its work."""
    calls = 0

    def wrapper(*arguments: object) -> None:
        nonlocal calls
        calls += 1
        if calls == at and not late:
            raise error
        real(*arguments)
        if calls == at:
            raise error

    return wrapper


@pytest.mark.parametrize("late", [False, True], ids=["before it is written", "after it is written"])
@pytest.mark.parametrize("at", range(1, N_FILES + 1))
@pytest.mark.parametrize(
    ("error", "raised"),
    [
        (OSError(errno.ENOSPC, "No space left on device"), RefusedError),
        (KeyboardInterrupt(), KeyboardInterrupt),
        (MemoryError(), MemoryError),
    ],
    ids=["disk full", "Ctrl-C", "out of memory"],
)
def test_a_failing_install_restores_every_byte(
    tree: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, at: int, late: bool, error: BaseException, raised: type
) -> None:
    overlay = make_overlay(tmp_path / "overlay")
    before = snapshot(tree)
    monkeypatch.setattr(Transaction, "write", failing(Transaction.write, at, error, late=late))
    with pytest.raises(raised):
        patcher.install(tree, overlay=overlay, pins=PINS)
    assert snapshot(tree) == before
    assert not (tree / "ggml/src/turboprefill").exists()


@pytest.mark.parametrize("at", [1, 2, 3])
def test_a_failing_uninstall_restores_every_byte(
    tree: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, at: int
) -> None:
    overlay = make_overlay(tmp_path / "overlay")
    patcher.install(tree, overlay=overlay, pins=PINS)
    before = snapshot(tree)
    monkeypatch.setattr(Transaction, "delete", failing(Transaction.delete, at, KeyboardInterrupt(), late=True))
    with pytest.raises(KeyboardInterrupt):
        patcher.uninstall(tree, overlay=overlay, pins=PINS)
    assert snapshot(tree) == before


def test_a_restored_file_keeps_its_time(tree: Path) -> None:
    path = tree / HOOKED[0]
    before = path.stat().st_mtime_ns

    def change_and_fail() -> None:
        with transaction(tree) as files:
            files.write(path, b"other")
            raise ValueError("stop")

    with pytest.raises(ValueError, match="stop"):
        change_and_fail()
    assert path.stat().st_mtime_ns == before


def test_no_copies_are_left_behind(tree: Path) -> None:
    with transaction(tree) as files:
        files.write(tree / HOOKED[0], b"other")
    assert list(tree.glob(".turboprefill*")) == []


def test_copies_of_a_killed_process_are_cleared_away(tree: Path) -> None:
    (tree / ".turboprefill-left").mkdir()
    with transaction(tree):
        pass
    assert list(tree.glob(".turboprefill*")) == []


def test_a_full_or_read_only_disk_is_named(tree: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_arguments: object, **_options: object) -> str:
        raise OSError(errno.EROFS, "Read-only file system")

    monkeypatch.setattr("turboprefill.tools.transaction.tempfile.mkdtemp", refuse)
    with pytest.raises(RefusedError, match=r"cannot write to .*Read-only file system.*Nothing was changed"):
        patcher.install(tree, overlay=make_overlay(tmp_path / "overlay"), pins=PINS)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_tree_without_write_permission_is_refused(tree: Path, tmp_path: Path) -> None:
    overlay = make_overlay(tmp_path / "overlay")
    tree.chmod(0o555)
    try:
        with pytest.raises(RefusedError, match="Permission denied"):
            patcher.install(tree, overlay=overlay, pins=PINS)
    finally:
        tree.chmod(0o755)


def test_two_commands_do_not_change_one_tree_at_once(tree: Path, tmp_path: Path) -> None:
    handle = os.open(tree, os.O_RDONLY)
    fcntl.flock(handle, fcntl.LOCK_EX)
    try:
        with pytest.raises(RefusedError, match="another turboprefill command"):
            patcher.install(tree, overlay=make_overlay(tmp_path / "overlay"), pins=PINS)
    finally:
        os.close(handle)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM], ids=["SIGINT", "SIGTERM"])
def test_a_signal_between_two_files_restores_every_byte(tree: Path, number: signal.Signals) -> None:
    before = snapshot(tree)
    program = f"""
import signal, sys, time
from pathlib import Path
from turboprefill.tools.transaction import transaction
signal.signal(signal.SIGTERM, signal.default_int_handler)
tree = Path({str(tree)!r})
with transaction(tree) as files:
    files.write(tree / {HOOKED[0]!r}, b"one")
    print("written", flush=True)
    time.sleep(60)
"""
    with subprocess.Popen(
        [sys.executable, "-c", program], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
    ) as process:
        assert process.stdout
        assert process.stdout.readline() == b"written\n"  # and it waits, or is about to
        process.send_signal(number)
        assert process.wait(60) == -signal.SIGINT  # as a program that Ctrl-C has ended
    assert snapshot(tree) == before


SIGNALS = [signal.SIGINT, signal.SIGTERM, signal.SIGHUP]


class SignalError(Exception):
    pass


def interrupt(*_arguments: object) -> None:
    raise SignalError


@pytest.fixture
def interrupting() -> Iterator[None]:
    """SIGINT, SIGTERM and SIGHUP raise an exception, as in the command line; one that does not end the tests."""
    before = {number: signal.signal(number, interrupt) for number in SIGNALS}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


def interrupted(real: Callable[..., None], number: signal.Signals) -> Callable[..., None]:
    """``real``, before which this process gets a signal."""

    def wrapper(*arguments: object, **options: object) -> None:
        os.kill(os.getpid(), number)
        real(*arguments, **options)

    return wrapper


@pytest.mark.usefixtures("interrupting")
@pytest.mark.parametrize("number", SIGNALS, ids=lambda number: number.name)
class TestSignals:
    def test_while_everything_is_put_back_change_nothing(
        self, tree: Path, monkeypatch: pytest.MonkeyPatch, number: signal.Signals
    ) -> None:
        before = snapshot(tree)
        monkeypatch.setattr(Transaction, "rollback", interrupted(Transaction.rollback, number))

        def change_and_fail() -> None:
            with transaction(tree) as files:
                files.write(tree / HOOKED[0], b"other")
                raise ValueError("stop")

        with pytest.raises(ValueError, match="stop"):
            change_and_fail()
        assert snapshot(tree) == before
        assert signal.getsignal(number) is interrupt

    def test_while_the_copies_are_cleared_away_change_nothing(
        self, tree: Path, monkeypatch: pytest.MonkeyPatch, number: signal.Signals
    ) -> None:
        with transaction(tree) as files:
            files.write(tree / HOOKED[0], b"other")
            monkeypatch.setattr("turboprefill.tools.transaction.shutil.rmtree", interrupted(shutil.rmtree, number))
        monkeypatch.undo()
        assert (tree / HOOKED[0]).read_bytes() == b"other"
        assert list(tree.glob(".turboprefill*")) == []
        assert signal.getsignal(number) is interrupt


def test_a_thread_can_change_a_tree_too(tree: Path, tmp_path: Path) -> None:
    overlay = make_overlay(tmp_path / "overlay")
    thread = threading.Thread(target=patcher.install, args=(tree,), kwargs={"overlay": overlay, "pins": PINS})
    thread.start()
    thread.join()
    assert patcher.status(tree, overlay=overlay, pins=PINS).up_to_date
    assert list(tree.glob(".turboprefill*")) == []


def test_a_transaction_in_another_one_is_refused(tree: Path) -> None:
    with transaction(tree), pytest.raises(RefusedError, match="another turboprefill command"), transaction(tree):
        pass


def test_a_file_that_was_written_twice_gets_its_first_content_back(tree: Path) -> None:
    before = snapshot(tree)

    def change_and_fail() -> None:
        with transaction(tree) as files:
            for data in (b"one", b"two"):
                files.write(tree / HOOKED[0], data)
            raise ValueError("stop")

    with pytest.raises(ValueError, match="stop"):
        change_and_fail()
    assert snapshot(tree) == before


def test_folders_that_became_empty_come_back_with_their_file(tree: Path) -> None:
    path = tree / "src/one/two/file"
    path.parent.mkdir(parents=True)
    path.write_bytes(b"data")
    before = snapshot(tree)

    def change_and_fail() -> None:
        with transaction(tree) as files:
            files.delete(path)
            assert not (tree / "src/one").exists()
            raise ValueError("stop")

    with pytest.raises(ValueError, match="stop"):
        change_and_fail()
    assert snapshot(tree) == before


@pytest.mark.parametrize("at", range(1, N_FILES + 1))
def test_a_disk_that_is_full_before_a_file_is_in_place_restores_every_byte(
    tree: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, at: int
) -> None:
    overlay = make_overlay(tmp_path / "overlay")
    before = snapshot(tree)
    full = OSError(errno.ENOSPC, "No space left on device")
    monkeypatch.setattr("turboprefill.tools.transaction.os.fsync", failing(os.fsync, at, full, late=False))
    with pytest.raises(RefusedError, match="No space left on device"):
        patcher.install(tree, overlay=overlay, pins=PINS)
    assert snapshot(tree) == before
    assert not (tree / "ggml/src/turboprefill").exists()


def test_every_file_is_on_the_disk_before_it_takes_its_place(
    tree: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sizes: list[int] = []
    monkeypatch.setattr(
        "turboprefill.tools.transaction.os.fsync", lambda number: sizes.append(os.fstat(number).st_size)
    )
    patcher.install(tree, overlay=make_overlay(tmp_path / "overlay"), pins=PINS)
    assert len(sizes) == N_FILES
    assert min(sizes) > 0  # what Python still held back would not be there


def test_new_files_can_be_read_by_everybody_whatever_the_mask(tree: Path, tmp_path: Path) -> None:
    mask = os.umask(0o077)
    try:
        patcher.install(tree, overlay=make_overlay(tmp_path / "overlay"), pins=PINS)
    finally:
        os.umask(mask)
    assert {(tree / name).stat().st_mode & 0o777 for name in OWN} == {0o644}
