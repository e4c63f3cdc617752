"""The figures of runs, kept as JSON: one entry for each seed, and the sums."""

import json
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from soak.checker import Verdict
from soak.history import SDK, STANDALONE, Kind, Observation, Operation, What
from soak.report import FAULTS
from soak.rules import Class

_SUMS = ("calls", "by_the_sdk_client", "cuts", "resumes", "standalone_connections", "messages", "standalone_messages")


def figures(history: Sequence[Observation], verdict: Verdict) -> dict[str, Any]:
    """Return the figures of one run.

    Args:
        history: The observations.
        verdict: The result of the check.
    """
    calls = [one for one in history if one.what is What.CALL]
    began = [one for one in history if one.what is What.BEGAN]
    messages = [one for one in history if one.what is What.EVENT and one.kind != Kind.PRIMING]
    killed = [f"redis killed, {one.kind}" for one in history if one.what is What.REDIS_KILLED]
    return {
        "seconds": round(history[-1].at - history[0].at),
        "calls": len(calls),
        "by_the_sdk_client": sum(one.note == SDK for one in calls),
        "outcomes": _count(one.kind for one in history if one.what is What.DONE and one.stream != STANDALONE),
        "cuts": sum(one.what is What.CUT and one.kind != "after response" for one in history),
        "resumes": sum(one.operation == Operation.RESUME for one in began),
        "standalone_connections": sum(one.operation == Operation.LISTEN for one in began),
        "messages": len(messages),
        "standalone_messages": sum(one.stream == STANDALONE for one in messages),
        "faults": _count([*(FAULTS[one.what] for one in history if one.what in FAULTS), *killed]),
        "allowed": dict(sorted(verdict.allowed.items())),
        "violations": {kind.name.lower(): len(ones) for kind, ones in verdict.by_class().items()},
    }


def add(path: Path, seed: int, run: dict[str, Any], measured_with: dict[str, Any]) -> dict[str, Any]:
    """Add a run to a file, in place of an earlier one of the same seed; returns the content.

    Args:
        path: The file, which need not exist.
        seed: Of the run.
        run: Its figures.
        measured_with: The versions and the machine.
    """
    before = json.loads(path.read_text("utf-8"))["runs"] if path.exists() else {}
    runs: dict[str, dict[str, Any]] = dict(sorted({**before, str(seed): run}.items(), key=lambda item: int(item[0])))
    total: dict[str, Any] = {name: sum(each[name] for each in runs.values()) for name in ("seconds", *_SUMS)}
    for name in ("faults", "outcomes"):
        counted: Counter[str] = Counter()
        for each in runs.values():
            counted.update(each[name])
        total[name] = dict(counted.most_common())
    total["violations"] = {kind.name.lower(): 0 for kind in Class}
    for each in runs.values():
        for kind, count in each["violations"].items():
            total["violations"][kind] = total["violations"].get(kind, 0) + count
    content = {"measured_with": measured_with, "total": total, "runs": runs}
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"{json.dumps(content, indent=1)}\n", "utf-8")
    return content


def _count(values: Iterable[str]) -> dict[str, int]:
    return dict(Counter(values).most_common())
