"""The counters and histograms of dead processes, merged into one file of each type.

prometheus_client keeps the files of every process, so workers that are replaced often leave many of them. This module
sums the files of dead processes into files of a new generation. A manifest names the current generation and the files
that are merged into it. Replacing the manifest commits a merge: a merge that is killed before has no effect, and the
next one completes a merge that is killed after. A reader that finds a different manifest after reading reads again, so
every value counts exactly once.
"""

import contextlib
import fcntl
import json
import os
import struct
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TypeVar

from prometheus_client.mmap_dict import MmapedDict
from prometheus_client.multiprocess import MultiProcessCollector

UNREADABLE = (OSError, ValueError, RuntimeError, struct.error)
"""Errors of prometheus_client for files that were just created, or that are damaged."""
TYPES = ("counter", "histogram", "summary")
"""The types whose values of several processes are added."""
_ARCHIVE = "{}_eventscope-{}.db"
"""prometheus_client reads files of any name, and the type from its beginning."""
_MANIFEST = "eventscope-merged.json"
_LOCK = "eventscope-merging.lock"
_ATTEMPTS = 100
"""Attempts to read files while others are merged: each merge takes milliseconds, and follows the death of a process."""

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class _Manifest:
    """The current generation, and the files merged into it."""

    generation: int = 0
    """The number in the names of the merged files; 0: there are none."""
    absorbed: dict[str, int] = field(default_factory=dict)
    """The inodes of merged files that may still exist, by name. A new process may reuse a pid, and so a name."""

    @classmethod
    def read(cls, where: Path) -> "_Manifest":
        """Read the manifest of a directory; the initial one where there is none."""
        try:
            return cls(**json.loads((where / _MANIFEST).read_bytes()))
        except (FileNotFoundError, ValueError, TypeError):
            return cls()

    def write(self, where: Path) -> None:
        """Replace the manifest of a directory."""
        new = where / f"{_MANIFEST}.new"
        new.write_text(json.dumps(asdict(self)), encoding="utf-8")
        new.replace(where / _MANIFEST)

    def counts(self, path: Path) -> bool:
        """Whether the values of a file count in this generation."""
        _, _, number = path.stem.partition("_eventscope-")
        if number.isdecimal():
            return int(number) == self.generation
        return path.name not in self.absorbed or path.stat().st_ino != self.absorbed[path.name]


def read(where: Path, reading: Callable[[list[str]], T]) -> T:
    """Read the files of a directory, each value once, while other processes may merge some of them.

    Args:
        where: The directory.
        reading: Reads files, and returns the result. It may be called several times.
    """
    for _ in range(_ATTEMPTS):
        manifest, raised = _Manifest.read(where), None
        try:
            result = reading([str(path) for path in sorted(where.glob("*.db")) if manifest.counts(path)])
        except OSError as error:
            raised = error
        if manifest == _Manifest.read(where):
            if raised is not None:
                raise raised
            return result
    msg = f"could not read the metrics in {where}: files kept changing; replace workers less often"
    raise RuntimeError(msg)


def merge(where: Path, pids: Iterable[int]) -> bool:
    """Merge the files of dead processes, unless another process does so at the moment.

    Args:
        where: The directory.
        pids: The processes, which must not be started again meanwhile.

    Returns:
        Whether they are merged: no file of them counts any more, except damaged ones.
    """
    with _lock(where) as locked:
        if not locked:
            return False
        before = _clean(where, _Manifest.read(where))
        dead = [path for pid in pids for type_ in TYPES if (path := where / f"{type_}_{pid}.db").exists()]
        absorbed: dict[str, int] = {}
        for type_ in TYPES:
            archive = where / _ARCHIVE.format(type_, before.generation)
            sources = [archive] if archive.exists() else []
            sources += [path for path in dead if path.name.startswith(f"{type_}_")]
            read_ones = _sum(sources, where / _ARCHIVE.format(type_, before.generation + 1))
            absorbed |= {path.name: path.stat().st_ino for path in read_ones}
        if dead:
            after = _Manifest(before.generation + 1, absorbed)
            after.write(where)
            _clean(where, after)
    return True


@contextmanager
def _lock(where: Path) -> Iterator[bool]:
    """Lock the directory for a merge; return whether no other process has locked it. Readers need no lock."""
    descriptor = os.open(where / _LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            yield False
        else:
            yield True
    finally:
        os.close(descriptor)


def _clean(where: Path, manifest: _Manifest) -> _Manifest:
    """Delete the files that no longer count, and forget them."""
    for type_ in TYPES:
        for path in where.glob(_ARCHIVE.format(type_, "*")):
            if not manifest.counts(path):
                path.unlink()
    for name in manifest.absorbed:
        with contextlib.suppress(FileNotFoundError):
            if not manifest.counts(where / name):
                (where / name).unlink()
    if not manifest.absorbed:
        return manifest
    cleaned = _Manifest(manifest.generation)
    cleaned.write(where)
    return cleaned


def _sum(sources: list[Path], target: Path) -> list[Path]:
    """Write the sums of the values of files into a new file. Returns the files that could be read."""
    sums: defaultdict[str, float] = defaultdict(float)
    found = []
    for source in sources:
        try:
            MultiProcessCollector.merge([str(source)])  # type: ignore[no-untyped-call] # It checks the keys, too.
            values = [(key, value) for key, value, *_ in MmapedDict.read_all_values_from_file(str(source))]  # type: ignore[no-untyped-call]
        except UNREADABLE:
            continue
        found.append(source)
        for key, value in values:
            sums[key] += value
    if found:
        target.unlink(missing_ok=True)  # A merge that was killed may have left it.
        written = MmapedDict(str(target))  # type: ignore[no-untyped-call]
        for key, value in sums.items():
            written.write_value(key, value, 0.0)  # type: ignore[no-untyped-call]
        written.close()  # type: ignore[no-untyped-call]
    return found
