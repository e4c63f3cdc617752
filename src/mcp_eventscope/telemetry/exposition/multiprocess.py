"""prometheus_client's multiprocess mode: one exposition of all processes, without gauges of dead ones.

Every process writes its values into files of its own in `PROMETHEUS_MULTIPROC_DIR`. Counters and histograms of dead
processes still count, and are merged (`dead_processes`). Their gauges must not, but prometheus_client relies on a hook
of gunicorn to remove them, and no hook runs after SIGKILL. Here, each process locks a file named after its pid, which
the kernel unlocks when the process ends, and a scrape removes the gauges of processes whose file is unlocked. A check
of the pid would not do, since pids are reused. Files of processes without a lock file are kept.
"""

import contextlib
import fcntl
import os
import threading
from collections.abc import Iterable
from pathlib import Path

from prometheus_client import Metric, values
from prometheus_client.multiprocess import MultiProcessCollector, mark_process_dead
from prometheus_client.registry import Collector

from mcp_eventscope.process import PROCESS
from mcp_eventscope.telemetry.exposition import dead_processes

VARIABLE = "PROMETHEUS_MULTIPROC_DIR"
"""The environment variable that enables the mode; prometheus_client reads it when it is imported."""

_HELD = "eventscope-{}.alive"


def directory() -> Path | None:
    """The shared directory; None outside of multiprocess mode.

    Raises:
        ValueError: The variable was set or unset too late, or names no directory.
    """
    named = os.environ.get(VARIABLE) or os.environ.get(VARIABLE.lower()) or ""
    # prometheus_client decides once, when it is imported.
    if not values.ValueClass._multiprocess:
        if named:
            msg = (
                f"{VARIABLE} must be set before prometheus_client is imported, or each worker exposes its own metrics "
                "only; set it in the environment of the server"
            )
            raise ValueError(msg)
        return None
    if not named or not Path(named).is_dir():
        msg = (
            f"{VARIABLE} must name an existing, writable directory, got {named!r}; "
            "create an empty one at each start of the server, or unset the variable"
        )
        raise ValueError(msg)
    return Path(named)


class _Membership:
    """This process among those that share the directory."""

    def __init__(self) -> None:
        self.scrape_lock = threading.Lock()
        """Held while the files of dead processes are locked: those locks belong to the process, not to a thread."""
        self._pid = 0
        self._descriptor: int | None = None

    def join(self) -> bool:
        """Lock the file of this process for its lifetime; see `join` of the module."""
        where, pid = directory(), os.getpid()
        if where is None or self._pid == pid:
            return False
        if self._descriptor is not None:
            inherited, self._descriptor = self._descriptor, None
            os.close(inherited)  # From the parent, unlike the lock.
        path = where / _HELD.format(pid)
        reused = path.exists()
        try:
            self._descriptor = _locked(path)
        except OSError as error:
            msg = (
                f"{VARIABLE} must name an existing, writable directory, got {where} ({error.strerror}); "
                "create an empty one that the user of the server may write"
            )
            raise ValueError(msg) from error
        self._pid = pid
        return reused

    def after_fork(self) -> None:
        """Lock a file of the child's own if the parent had one. A thread of the parent may have held the lock."""
        self.scrape_lock = threading.Lock()
        if self._pid:
            with contextlib.suppress(ValueError):
                if self.join():
                    # prometheus_client has not opened them yet in this process.
                    mark_process_dead(self._pid, str(directory()))  # type: ignore[no-untyped-call]


def join() -> bool:
    """Lock the file of this process for its lifetime; idempotent, and repeated after a fork.

    Returns:
        Whether a dead process with the same pid has left a lock file, and probably gauges.

    Raises:
        ValueError: As in `directory`, or the directory is not writable.
    """
    return PROCESS.single(_Membership).join()


def hold(name: str) -> int | None:
    """Try to lock a file of the directory.

    Args:
        name: The name of the file.

    Returns:
        The descriptor, whose closing releases the lock; None if another process holds it.
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
    os.write(descriptor, f"{os.getpid()}\n".encode())  # For debugging.
    return descriptor


def _opened(path: Path) -> int:
    return os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)


def _locked(path: Path) -> int:
    """Lock the file at a path, and not one that was removed while waiting for the lock."""
    while True:
        descriptor = _opened(path)
        fcntl.lockf(descriptor, fcntl.LOCK_EX)
        with contextlib.suppress(FileNotFoundError):
            if os.path.samestat(os.fstat(descriptor), path.stat()):
                return descriptor
        os.close(descriptor)


def remove_dead_processes(where: Path) -> None:
    """Remove the live gauges of dead processes, and merge their other values."""
    own = _HELD.format(os.getpid())  # Closing it would release the lock.
    with contextlib.ExitStack() as held:
        dead: dict[int, Path] = {}
        for path in where.glob(_HELD.format("*")):
            pid = path.stem.partition("-")[2]
            # Another process may do the same concurrently; a later scrape removes the rest.
            if path.name != own and pid.isdecimal() and _lock_of_dead(path, held):
                mark_process_dead(int(pid), str(where))  # type: ignore[no-untyped-call]
                if not _exists(int(pid)):
                    dead[int(pid)] = path
        if dead and dead_processes.merge(where, dead):
            for path in dead.values():
                path.unlink()


def _lock_of_dead(path: Path, held: contextlib.ExitStack) -> bool:
    """Lock the file of a process if it is dead. A new process with its pid then waits before it uses the directory."""
    try:
        descriptor = os.open(path, os.O_RDWR | os.O_CLOEXEC)
    except FileNotFoundError:
        return False
    held.callback(os.close, descriptor)
    try:
        fcntl.lockf(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return False
    return path.exists()


def _exists(pid: int) -> bool:
    """Whether there is a process with this pid: it may have opened a file before it has locked its own."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


class AllProcessesCollector(Collector):
    """Collects the metrics of all processes of a directory, merged by their multiprocess modes.

    Args:
        where: The directory.
        names: The sample names to include; None: all.
    """

    def __init__(self, where: Path, names: Iterable[str] | None = None) -> None:
        self._where = where
        self._names = None if names is None else frozenset(names)

    def collect(self) -> Iterable[Metric]:
        """Merge the files, after removing the gauges of dead processes."""
        with PROCESS.single(_Membership).scrape_lock:
            remove_dead_processes(self._where)
        metrics = dead_processes.read(self._where, _merged)
        if self._names is None:
            return metrics
        for metric in metrics:
            metric.samples = [sample for sample in metric.samples if sample.name in self._names]
        return [metric for metric in metrics if metric.samples]


def _merged(files: list[str]) -> list[Metric]:
    try:
        return _merge(files)
    except dead_processes.UNREADABLE:
        # One unreadable file must not hide the others.
        return _merge([file for file in files if _readable(file)])


def _merge(files: list[str]) -> list[Metric]:
    return list(MultiProcessCollector.merge(files))  # type: ignore[no-untyped-call]


def _readable(file: str) -> bool:
    try:
        _merge([file])
    except dead_processes.UNREADABLE:
        return False
    return True
