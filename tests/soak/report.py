"""Formats the summary of a run as text."""

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence

from soak.checker import Verdict
from soak.history import SDK, STANDALONE, Kind, Observation, Operation, What
from soak.rules import Suspicion

_EXAMPLES = 3
FAULTS = {
    What.WORKER_KILLED: "worker killed",
    What.WORKER_FROZEN: "worker frozen",
    What.REDIS_FROZEN: "redis frozen",
    What.REDIS_FLUSHED: "redis flushed",
    What.REDIS_CUTTING: "redis connections cut",
    What.CLIENTS_CUT: "all clients cut",
    What.REDIS_SLOW: "redis slow",
}


def summary(history: Sequence[Observation], verdict: Verdict, again: str) -> str:
    """Return the table.

    Args:
        history: The observations.
        verdict: The result of the check.
        again: The command to reproduce the run.
    """
    return "\n".join([*_traffic(history), *_faults(history), *_allowed(verdict), *_violations(verdict, again)])


def _traffic(history: Sequence[Observation]) -> Iterator[str]:
    done = [one for one in history if one.what is What.DONE and one.stream != STANDALONE]
    events = [one for one in history if one.what is What.EVENT]
    cuts = [one for one in history if one.what is What.CUT and one.kind != "after response"]
    began = [one for one in history if one.what is What.BEGAN]
    calls = [one for one in history if one.what is What.CALL]
    yield from _table("calls", {"all": len(calls), **_count(one.kind for one in done)})
    yield from _table("", {"by the SDK's client": sum(one.note == SDK for one in calls)})
    yield from _table("sessions", {"opened": sum(one.what is What.OPENED for one in history)})
    yield from _table("events", {"all": len(events), **_count(Kind(one.kind).value for one in events)})
    yield from _table("cuts", {"all": len(cuts), **_count(one.kind for one in cuts)})
    resumes = [one for one in began if one.operation == Operation.RESUME]
    elsewhere = [one for one in began if one.operation == Operation.LISTEN]
    yield from _table("resumes", {"of calls": len(resumes), "standalone connections": len(elsewhere)})
    refused = [one for one in history if one.what is What.REFUSED]
    yield from _table("refused", _count(f"{one.operation} {one.code or one.kind}" for one in refused))
    lags = [one.number for one in history if one.what is What.LAG]
    if lags:
        yield from _table("rig", {"late loops": len(lags), "latest, ms": max(lags), "ms late in total": sum(lags)})


def _faults(history: Sequence[Observation]) -> Iterator[str]:
    counted = _count(FAULTS[one.what] for one in history if one.what in FAULTS)
    killed = _count(f"redis killed, {one.kind}" for one in history if one.what is What.REDIS_KILLED)
    yield from _table("faults", {**counted, **killed})


def _allowed(verdict: Verdict) -> Iterator[str]:
    yield from _table("allowed", dict(verdict.allowed.most_common()))


def _violations(verdict: Verdict, again: str) -> Iterator[str]:
    found = {kind: ones for kind, ones in verdict.by_class().items() if ones}
    yield from _table("VIOLATIONS", {kind.value: len(ones) for kind, ones in found.items()} or {"none": 0})
    for kind, ones in found.items():
        streams = len({(one.session, one.stream) for one in ones})
        codes = ", ".join(
            f"{code}: {count}" for code, count in _count(str(one.code) for one in ones if one.code).items()
        )
        yield f"\n{kind.value}: {len(ones)} in {streams} streams{f' ({codes})' if codes else ''}"
        for one in ones[:_EXAMPLES]:
            yield f"  {_example(one)}"
    yield f"\nto reproduce: {again}"


def _example(one: Suspicion) -> str:
    where = f"client {one.client} session {one.session} {one.stream}, run by worker {one.runner}"
    return f"at {one.at:8.3f} s: {where}: {one.detail}"


def _table(title: str, counts: dict[str, int]) -> Iterator[str]:
    for place, (name, count) in enumerate(counts.items()):
        yield f"{title if place == 0 else '':12} {count:7} {name}"


def _count(values: Iterable[str]) -> dict[str, int]:
    return dict(Counter(values).most_common())
