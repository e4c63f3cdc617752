"""The verdict: client, workers and metrics must agree."""

import signal
from collections import Counter
from collections.abc import Mapping, Sequence

from mcp_eventscope.demo import figures as names
from mcp_eventscope.demo.figures import Figures
from mcp_eventscope.demo.record import Kind, Moment, after, of
from mcp_eventscope.store.jsonrpc_errors import REQUEST_ORPHANED

GRACE_SECONDS = 1.0
"""How long after the lease the error may arrive: followers check twice a second."""


def of_cut(moments: Sequence[Moment], figures: Mapping[str, Figures], steps: int) -> list[str]:
    """Check that every event arrived once and in order, the second half from the other worker.

    Args:
        moments: The moments of the client.
        figures: The metrics of each worker during the scene, by its name.
        steps: The number of events of the call.

    Returns:
        One sentence for each fault.
    """
    numbers = [moment.number for moment in of(Kind.EVENT, moments)]
    found = _of_events(numbers, steps)
    found += [f"the call failed: {moment.text}" for moment in of(Kind.FAILURE, moments)]
    results = of(Kind.RESULT, moments)
    if len(results) != 1:
        found.append("the result never arrived" if not results else f"the result arrived {len(results)} times")
    elif moments[-1] is not results[0]:
        found.append("the result arrived before the last event")
    return [*found, *_of_way(moments), *_of_figures(moments, figures)]


def of_kill(
    moments: Sequence[Moment], figures: Mapping[str, Figures], steps: int, lease: float, words: int
) -> list[str]:
    """Check that the call of the killed worker was answered in time, and that its session continued.

    Args:
        moments: The moments of the client.
        figures: The metrics of each worker that is alive, during the scene, by its name.
        steps: The number of events of a complete call.
        lease: The lease of a worker, in seconds.
        words: The expected result of the next call.

    Returns:
        One sentence for each fault.
    """
    kills = [moment for moment in of(Kind.KILL, moments) if moment.number == signal.SIGKILL]
    runner = _runner(moments)
    if len(kills) != 1 or kills[0].worker != runner:
        return ["the worker that ran the call was not killed, so nothing was shown"]
    ends = (index for index, moment in enumerate(moments) if moment.kind in {Kind.FAILURE, Kind.RESULT})
    end = next(ends, len(moments))
    numbers = [moment.number for moment in of(Kind.EVENT, moments)]
    found = _of_events(numbers, max(numbers, default=0))
    before = moments[: moments.index(kills[0])]
    if not of(Kind.EVENT, before) or max(numbers) >= steps:
        found.append("the kill was not in the middle of the events")
    if not of(Kind.RETURN, moments[len(before) : end]):
        found.append("the client did not reconnect after the kill")
    found += _of_error(moments[end : end + 1], kills[0], lease)
    found += _of_next(moments[end + 1 :], runner, words)
    return [*found, *_of_figures(moments[: end + 1], figures, orphaned=1)]


def of_task(moments: Sequence[Moment], runner: str, other: str, steps: int) -> list[str]:
    """Check that a task outlived its client, and that the other worker had its progress, its result and its signal.

    Args:
        moments: The moments of the clients.
        runner: The worker that ran the task.
        other: The other worker.
        steps: The expected result.

    Returns:
        One sentence for each fault.
    """
    if [moment.worker for moment in of(Kind.TASK, moments)] != [runner]:
        return [f"no task was created on worker {runner}, so nothing was shown"]
    found = [] if of(Kind.LEFT, after(Kind.TASK, moments)) else ["the client of the task did not leave"]
    found += [f"the task failed: {moment.text}" for moment in of(Kind.FAILURE, moments)]
    results = [(moment.worker, moment.number) for moment in of(Kind.RESULT, after(Kind.LEFT, moments))]
    if results != [(other, steps)]:
        found.append(f"worker {other} did not have the result of the task once, after its client had left")
    if not of(Kind.STATUS, moments):
        found.append("no poll showed the progress of the task")
    if [moment.worker for moment in of(Kind.SIGNAL, moments)] != [other]:
        found.append(f"the change was not signalled on worker {other}")
    return found


def of_orphaned_task(moments: Sequence[Moment], other: str) -> list[str]:
    """Check that the task of a killed worker failed honestly.

    Args:
        moments: The moments of its clients.
        other: The worker that answered the polls.

    Returns:
        One sentence for each fault.
    """
    failures = [(moment.worker, moment.number) for moment in of(Kind.FAILURE, moments)]
    if failures == [(other, REQUEST_ORPHANED)] and not of(Kind.RESULT, moments):
        return []
    return [f"the task of the killed worker did not fail once with {REQUEST_ORPHANED} on worker {other}"]


def _of_events(numbers: Sequence[int], steps: int) -> list[str]:
    found = []
    if missing := sorted(set(range(1, steps + 1)) - set(numbers)):
        found.append(f"events never arrived: {_listed(missing)}")
    if doubled := sorted(number for number, times in Counter(numbers).items() if times > 1):
        found.append(f"events arrived more than once: {_listed(doubled)}")
    if strange := sorted(set(numbers) - set(range(1, steps + 1))):
        found.append(f"events arrived that were never sent: {_listed(strange)}")
    if list(numbers) != sorted(numbers):
        found.append(f"events arrived out of order: {_listed(numbers)}")
    return found


def _of_way(moments: Sequence[Moment]) -> list[str]:
    """Check that one worker ran the call, its stream was cut, and the other one served the rest."""
    runner = _runner(moments)
    if not runner:
        return ["unknown which worker ran the call"]
    if not any(moment.number and moment.worker == runner for moment in of(Kind.CUT, moments)):
        return ["no stream of the worker that ran the call was cut, so nothing was shown"]
    rest = after(Kind.CUT, moments)
    if not of(Kind.EVENT, moments[: len(moments) - len(rest)]) or not of(Kind.EVENT, rest):
        return ["the cut was not in the middle of the events"]
    returns = of(Kind.RETURN, rest)
    if not returns:
        return ["the client did not reconnect after the cut"]
    if any(moment.worker in {"", runner} for moment in returns):
        return ["no other worker resumed the stream"]
    return []


def _of_error(end: Sequence[Moment], kill: Moment, lease: float) -> list[str]:
    if not end:
        return ["the call of the killed worker received no error"]
    (error,) = end
    if error.kind is Kind.RESULT:
        return ["the call of the killed worker returned a result"]
    found = []
    if error.number != REQUEST_ORPHANED:
        found.append(f"the call of the killed worker received another error, {error.number}: {error.text}")
    if (late := error.at - kill.at) > lease + GRACE_SECONDS:
        found.append(f"the error arrived {late:.1f} s after the kill, later than {lease + GRACE_SECONDS:g} s")
    return found


def _of_next(moments: Sequence[Moment], killed: str, words: int) -> list[str]:
    """Check the next call of the session, after the error."""
    found = [f"the session did not continue: {moment.text}" for moment in of(Kind.FAILURE, moments)]
    results = of(Kind.RESULT, moments)
    if not found and [result.number for result in results] != [words]:
        found.append("the session did not continue: its next call did not return the expected result")
    if not found and _runner(moments) in {"", killed}:
        found.append("unknown whether another worker served the next call")
    if of(Kind.EVENT, moments):
        found.append("events arrived after the error")
    return found


def _of_figures(moments: Sequence[Moment], figures: Mapping[str, Figures], orphaned: int = 0) -> list[str]:
    """Check that only the workers that served the resumed stream count its messages, and that nothing failed."""
    served = {moment.worker for moment in of(Kind.RETURN, moments)}
    owed = len(_streamed(moments))
    found = []
    counted = sum(counts.delivered for worker, counts in figures.items() if worker in served)
    if counted != owed:
        served_by = " and ".join(sorted(served)) or "no worker"
        found.append(f"{owed} messages arrived on the resumed stream, but /metrics of {served_by} counts {counted}")
    if (total := Figures.sum(figures.values()).total(names.ORPHANED)) != orphaned:
        found.append(f"{orphaned} requests were orphaned, but /metrics counts {total:g}")
    for worker, counts in sorted(figures.items()):
        if worker in served and not counts.resumed:
            found.append(f"/metrics of {worker} counts no complete replay")
        if worker not in served and counts.delivered:
            found.append(
                f"/metrics of {worker} counts {counts.delivered} messages on resumed streams, but it served none"
            )
        found += [
            f"/metrics of {worker} reports {total:g} {what}"
            for name, what in (
                (names.EVENTS_MISSING, "missing events"),
                (names.EVENTS_CORRUPT, "events that could not be read"),
                (names.ERRORS, "failed operations"),
            )
            if (total := counts.total(name))
        ]
    return found


def _streamed(moments: Sequence[Moment]) -> list[Moment]:
    """The messages on the resumed stream, without those that were in flight on the first one when it was cut."""
    kinds = {Kind.EVENT, Kind.RESULT, Kind.FAILURE}
    return [moment for moment in after(Kind.RETURN, moments) if moment.kind in kinds]


def _runner(moments: Sequence[Moment]) -> str:
    """The worker that runs the first call; "" if it is unknown."""
    return next((moment.worker for moment in of(Kind.CALL, moments)), "")


def _listed(numbers: Sequence[int]) -> str:
    return ", ".join(map(str, numbers))
