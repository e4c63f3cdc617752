"""prometheus_client's multiprocess mode: what all processes of a directory say, as one, without those that are gone.

Every process writes its values into files of its own in `PROMETHEUS_MULTIPROC_DIR`. Counters and histograms of a
process that is gone still count. Its gauges do not, and prometheus_client leaves it to others to say who is gone: the
hook that its documentation names for that belongs to gunicorn, and no hook runs after SIGKILL. So each process here
holds a lock on a file that is called after it, which the kernel releases whatever ends it, and whoever answers a scrape
removes the gauges of those whose lock is free. Whether a pid lives is never asked: another process may have it by then.
Files of processes that hold no such lock are left alone.
"""

import contextlib
import fcntl
import os
import struct
import threading
from collections.abc import Iterable
from pathlib import Path

from prometheus_client import Metric, values
from prometheus_client.multiprocess import MultiProcessCollector, mark_process_dead
from prometheus_client.registry import Collector

VARIABLE = "PROMETHEUS_MULTIPROC_DIR"
"""The environment variable that turns the mode on; prometheus_client reads it when it is imported."""

_HELD = "eventscope-{}.alive"
_UNREADABLE = (OSError, ValueError, RuntimeError, struct.error)
"""What prometheus_client raises of a file that a process has only just made, or that is damaged."""

_place: tuple[int, int] | None = None
_forks_are_seen = False
_one_scrape = threading.Lock()


def directory() -> Path | None:
    """Where the processes meet; None outside of multiprocess mode.

    Raises:
        ValueError: The variable was set or unset too late, or what it names is no directory.
    """
    named = os.environ.get(VARIABLE) or os.environ.get(VARIABLE.lower())
    # What matters is how prometheus_client took it, and that is decided once.
    if not values.ValueClass._multiprocess:
        if named:
            msg = (
                f"{VARIABLE} was set after prometheus_client had been imported, which is too late: every worker would "
                "show its own metrics only. Set it in the environment that the server is started in"
            )
            raise ValueError(msg)
        return None
    if not named or not Path(named).is_dir():
        msg = (
            f"{VARIABLE} must name a directory that is there and can be written to, not {named!r}: "
            "make one, empty, each time the server is started"
        )
        raise ValueError(msg)
    return Path(named)


def join() -> None:
    """Hold this process's lock, for as long as it lives; done once, and again in what it forks.

    Raises:
        ValueError: As in `directory`.
        OSError: The directory cannot be written to.
    """
    global _place, _forks_are_seen  # noqa: PLW0603 - there is one process
    where, pid = directory(), os.getpid()
    if where is None or (_place is not None and _place[0] == pid):
        return
    if _place is not None:
        os.close(_place[1])  # The parent's: a lock is not inherited, a descriptor is.
    _place = pid, _locked(where / _HELD.format(pid))
    if not _forks_are_seen:
        _forks_are_seen = True
        os.register_at_fork(after_in_child=_join_after_fork)


def _join_after_fork() -> None:
    with contextlib.suppress(OSError, ValueError):
        join()


def hold(name: str) -> int | None:
    """Try to be the one process of the directory that has a name.

    Args:
        name: Of a file in the directory.

    Returns:
        What to close in order to let go of it; None when another process has it.
    """
    where = directory()
    if where is None:
        return None
    descriptor = _opened(where / name)
    try:
        fcntl.lockf(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        os.close(descriptor)
        return None
    os.ftruncate(descriptor, 0)
    os.write(descriptor, f"{os.getpid()}\n".encode())  # For people who look.
    return descriptor


def _opened(path: Path) -> int:
    return os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)


def _locked(path: Path) -> int:
    """A locked file: the one that has this name, and not one that was removed while we waited for it."""
    while True:
        descriptor = _opened(path)
        fcntl.lockf(descriptor, fcntl.LOCK_EX)
        with contextlib.suppress(FileNotFoundError):
            if os.path.samestat(os.fstat(descriptor), path.stat()):
                return descriptor
        os.close(descriptor)


def forget_the_gone(where: Path) -> None:
    """Remove the live gauges of processes that have ended, however they ended."""
    own = _HELD.format(os.getpid())  # To close it would release it.
    for path in where.glob(_HELD.format("*")):
        pid = path.stem.partition("-")[2]
        if path.name == own or not pid.isdecimal():
            continue
        # Whatever goes wrong here: another process may be doing the same, and a later scrape will find what is left.
        with contextlib.suppress(OSError):
            descriptor = os.open(path, os.O_RDWR | os.O_CLOEXEC)
            try:
                fcntl.lockf(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                mark_process_dead(int(pid), str(where))  # type: ignore[no-untyped-call]
                path.unlink()
            finally:
                os.close(descriptor)


class Everybody(Collector):
    """What all processes of a directory say, added up as each metric wants it.

    Args:
        where: The directory.
        names: The names of samples to show; None: all.
    """

    def __init__(self, where: Path, names: Iterable[str] | None = None) -> None:
        self._where = where
        self._names = None if names is None else frozenset(names)

    def collect(self) -> Iterable[Metric]:
        """Read the files, those of the living and what counts of the dead."""
        with _one_scrape:  # Locks are a process's, not a thread's.
            forget_the_gone(self._where)
        metrics = self._merged()
        if self._names is None:
            return metrics
        for metric in metrics:
            metric.samples = [sample for sample in metric.samples if sample.name in self._names]
        return [metric for metric in metrics if metric.samples]

    def _merged(self) -> list[Metric]:
        files = sorted(map(str, self._where.glob("*.db")))
        try:
            return _merge(files)
        except _UNREADABLE:
            # One file must not hide all others, for a scrape or for ever.
            return _merge([file for file in files if _readable(file)])


def _merge(files: list[str]) -> list[Metric]:
    return list(MultiProcessCollector.merge(files))  # type: ignore[no-untyped-call]


def _readable(file: str) -> bool:
    try:
        _merge([file])
    except _UNREADABLE:
        return False
    return True
