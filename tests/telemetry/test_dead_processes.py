"""Merging the files of dead processes: killed at any step, and read at any moment, no value counts twice."""

from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
from prometheus_client.mmap_dict import MmapedDict, mmap_key

from mcp_eventscope.telemetry.exposition import dead_processes

DEAD = (11, 12)
LIVE = 13


def write(path: Path, value: float) -> None:
    """Write the file of one process, with one value."""
    file = MmapedDict(str(path))  # type: ignore[no-untyped-call]
    key = mmap_key("calls", "calls_total", ["store"], ["default"], "Calls.")
    file.write_value(key, value, 0.0)  # type: ignore[no-untyped-call]
    file.close()  # type: ignore[no-untyped-call]


def total(files: Sequence[str]) -> float:
    """The sum of the values of files."""
    found = (MmapedDict.read_all_values_from_file(file) for file in files)  # type: ignore[no-untyped-call]
    return sum(float(value) for values in found for _, value, *_ in values)


@pytest.fixture
def where(tmp_path: Path) -> Path:
    """A directory with the files of two dead processes, and of a live one."""
    for pid, value in zip((*DEAD, LIVE), (1.0, 2.0, 4.0), strict=True):
        write(tmp_path / f"counter_{pid}.db", value)
    return tmp_path


class Killed(BaseException):
    """The process that merges is killed."""


def interrupted(function: Callable[..., object], at: list[int], before: Callable[[], object]) -> Callable[..., object]:
    """A function of the file system that calls back before each call, and counts the calls down until it is killed."""

    def call(*arguments: object, **options: object) -> object:
        before()
        at[0] -= 1
        if at[0] == 0:
            raise Killed
        return function(*arguments, **options)

    return call


@pytest.mark.parametrize("step", range(1, 9))
def test_merge_that_is_killed_loses_nothing(where: Path, monkeypatch: pytest.MonkeyPatch, step: int) -> None:
    """Before each change of a file every reader has the same sum, and the next merge finishes the work."""
    at, sums = [step], []

    def look() -> None:
        sums.append(dead_processes.read(where, total))

    with monkeypatch.context() as patch:
        for name in ("replace", "unlink", "write_text"):
            patch.setattr(Path, name, interrupted(getattr(Path, name), at, look))
        try:
            assert dead_processes.merge(where, DEAD)
        except Killed:
            pass
        else:
            assert step == 8, "the others are killed"
    assert set(sums) == {7.0}
    assert dead_processes.read(where, total) == 7.0
    write(where / "counter_14.db", 8.0)
    assert dead_processes.merge(where, (*DEAD, 14))
    assert dead_processes.read(where, total) == 15.0
    assert len(list(where.glob("*.db"))) == 2


def test_merge_while_another_process_merges_is_left_to_it(where: Path) -> None:
    """Two workers may be scraped at the same moment."""
    with dead_processes._lock(where) as locked:
        assert locked
        assert not dead_processes.merge(where, DEAD)
    assert dead_processes.merge(where, DEAD)


def test_merge_of_a_damaged_file_keeps_it(where: Path) -> None:
    """The others are merged."""
    (where / "counter_11.db").write_bytes(b"\x40\0\0\0" + b"\x10\0\0\0" * 1024)
    assert dead_processes.merge(where, DEAD)
    left = {path.name for path in where.glob("*.db")}
    assert left == {"counter_11.db", "counter_13.db", "counter_eventscope-1.db"}


def test_file_of_a_reused_pid_counts(where: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A merge was killed before it had forgotten a file whose name a new process uses."""
    with monkeypatch.context() as patch:
        patch.setattr(dead_processes, "_clean", lambda _, manifest: manifest)
        assert dead_processes.merge(where, DEAD)
    (where / "counter_11.db").rename(where / "kept")
    write(where / "counter_11.db", 16.0)
    assert dead_processes.read(where, total) == 23.0
    assert dead_processes.merge(where, ())
    assert dead_processes.read(where, total) == 23.0


def test_read_during_a_merge_is_repeated(where: Path) -> None:
    """A reader that has listed the files before the merge, and reads them after it, would miss some."""
    tries: list[Sequence[str]] = []

    def reading(files: list[str]) -> float:
        tries.append(files)
        if len(tries) == 1:
            assert dead_processes.merge(where, DEAD)
        return total(files)

    assert dead_processes.read(where, reading) == 7.0
    assert [len(files) for files in tries] == [3, 2]
