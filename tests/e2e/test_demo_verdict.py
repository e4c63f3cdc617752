"""The verdict of `make demo`: for each of its checks, a run that fails it."""

from collections.abc import Mapping
from dataclasses import replace

import pytest

from mcp_eventscope.demo import figures as names
from mcp_eventscope.demo.figures import Figures
from mcp_eventscope.demo.record import Kind, Moment
from mcp_eventscope.demo.scenes import CUT_AFTER, KILL_AFTER, STEPS
from mcp_eventscope.demo.verdict import GRACE_SECONDS, of_cut, of_kill, of_orphaned_task, of_task
from mcp_eventscope.store.jsonrpc_errors import EVENTS_GONE, REQUEST_ORPHANED
from mcp_eventscope.telemetry import catalog

LEASE, WORDS = 2.0, 7


def progress(*numbers: int) -> list[Moment]:
    """One event for each number."""
    return [Moment(float(number), Kind.EVENT, number=number) for number in numbers]


def orphans(number: int) -> str:
    """What /metrics would report of requests whose worker has died."""
    return f"# TYPE {names.ORPHANED} counter\n{names.ORPHANED} {number}\n"


def counted(*, outcome: str = "resumed", replayed: int = 2, followed: int = 9, more: str = "") -> Figures:
    """What the /metrics of one worker would report."""
    return Figures.of(
        f'{names.REPLAY_SECONDS}_count{{outcome="{outcome}"}} 1\n'
        f"{names.REPLAYED_EVENTS}_sum {replayed}\n"
        f"# TYPE {names.EVENTS_FOLLOWED} counter\n{names.EVENTS_FOLLOWED} {followed}\n{more}"
    )


NOTHING = Figures.of("")
CALL = Moment(0.1, Kind.CALL, "countdown", worker="A")

# -- scene 1 ----------------------------------------------------------------------------------------------------------

BEFORE = [CALL, *progress(*range(1, CUT_AFTER + 1))]
CUT = Moment(6.1, Kind.CUT, number=2, worker="A")
RETURN = Moment(6.7, Kind.RETURN, "1.2", 200, "B")
AFTER = progress(*range(CUT_AFTER + 1, STEPS + 1))
RESULT = Moment(17.0, Kind.RESULT, number=STEPS)
GOOD = [*BEFORE, CUT, RETURN, *AFTER, RESULT]


def cut_faults(moments: list[Moment] = GOOD, *, a: Figures = NOTHING, b: Figures | None = None) -> list[str]:
    """The verdict on scene 1."""
    return of_cut(moments, {"A": a, "B": counted() if b is None else b}, STEPS)


def test_verdict_on_a_good_resume_has_no_faults() -> None:
    """Each event once, in order, cut in the middle and resumed by the other worker, and the figures agree."""
    assert cut_faults() == []
    assert cut_faults(b=counted(outcome="caught_up", replayed=0, followed=11)) == []


def test_event_in_flight_at_the_cut_is_no_resumed_event() -> None:
    """An event that the client reads of the first connection after the cut is not owed by the second."""
    moments = [*BEFORE, CUT, AFTER[0], RETURN, *AFTER[1:], RESULT]
    assert cut_faults(moments, b=counted(followed=8)) == []
    assert cut_faults(moments) != []


@pytest.mark.parametrize(
    ("moments", "fault"),
    [
        ([*BEFORE, CUT, RETURN, *AFTER[1:], RESULT], "events never arrived: 7"),
        ([*BEFORE, CUT, RETURN, BEFORE[-1], *AFTER, RESULT], "events arrived more than once: 6"),
        ([*BEFORE, CUT, RETURN, AFTER[1], AFTER[0], *AFTER[2:], RESULT], "events arrived out of order: 1, 2"),
        ([*BEFORE, CUT, RETURN, *AFTER, *progress(17), RESULT], "events arrived that were never sent: 17"),
        ([*BEFORE, CUT, RETURN, *AFTER], "the result never arrived"),
        ([*GOOD, RESULT], "the result arrived 2 times"),
        ([*BEFORE, CUT, RETURN, *AFTER[:-1], RESULT, AFTER[-1]], "the result arrived before the last event"),
        ([*BEFORE, CUT, Moment(7.0, Kind.FAILURE, "gone")], "the call failed: gone"),
        ([*BEFORE, *AFTER, RESULT], "no stream of the worker that ran the call was cut"),
        ([*BEFORE, replace(CUT, number=0), *AFTER, RESULT], "no stream of the worker that ran the call was cut"),
        ([*BEFORE, replace(CUT, worker="B"), RETURN, *AFTER, RESULT], "no stream of the worker that ran the call"),
        ([CALL, CUT, RETURN, *BEFORE[1:], *AFTER, RESULT], "the cut was not in the middle"),
        ([*BEFORE, *AFTER, CUT, RETURN, RESULT], "the cut was not in the middle"),
        ([*BEFORE, CUT, *AFTER, RESULT], "the client did not reconnect"),
        ([*BEFORE, CUT, replace(RETURN, worker="A"), *AFTER, RESULT], "no other worker resumed the stream"),
        ([*BEFORE, CUT, replace(RETURN, worker=""), *AFTER, RESULT], "no other worker resumed the stream"),
        ([*BEFORE[1:], CUT, RETURN, *AFTER, RESULT], "unknown which worker ran the call"),
        ([], "events never arrived: 1, 2"),
    ],
)
def test_verdict_reports_faults_of_the_client(moments: list[Moment], fault: str) -> None:
    """A missing, doubled, swapped or invented event, a result that is not, and a cut that showed nothing."""
    assert any(text.startswith(fault) for text in cut_faults(moments))


@pytest.mark.parametrize(
    ("figures", "fault"),
    [
        ({"b": NOTHING}, "/metrics of B counts no complete replay"),
        ({"b": counted(outcome="gap")}, "/metrics of B counts no complete replay"),
        ({"b": counted(followed=8)}, "11 messages arrived on the resumed stream, but /metrics of B counts 10"),
        ({"b": counted(followed=10)}, "11 messages arrived on the resumed stream, but /metrics of B counts 12"),
        ({"a": counted(), "b": NOTHING}, "11 messages arrived on the resumed stream, but /metrics of B counts 0"),
        (
            {"a": counted(replayed=0, followed=1)},
            "/metrics of A counts 1 messages on resumed streams, but it served none",
        ),
        ({"b": counted(more=f"{names.EVENTS_MISSING} 1\n")}, "/metrics of B reports 1 missing events"),
        ({"a": Figures.of(orphans(1))}, "0 requests were orphaned, but /metrics counts 1"),
        ({"a": Figures.of(f"{names.EVENTS_CORRUPT} 2\n")}, "/metrics of A reports 2 events that could not be read"),
        ({"a": Figures.of(f'{names.ERRORS}{{operation="store"}} 3\n')}, "/metrics of A reports 3 failed operations"),
    ],
)
def test_verdict_reports_faults_of_the_counters(figures: Mapping[str, Figures], fault: str) -> None:
    """What the client saw is not enough: the worker that resumed has to account for it, and no other."""
    assert any(text.startswith(fault) for text in cut_faults(a=figures.get("a", NOTHING), b=figures.get("b")))


# -- scene 2 ----------------------------------------------------------------------------------------------------------

UNTIL = [CALL, *progress(*range(1, KILL_AFTER + 1))]
KILL = Moment(4.1, Kind.KILL, number=9, worker="A")
BACK = replace(RETURN, at=4.7)
ERROR = Moment(6.0, Kind.FAILURE, "gone", REQUEST_ORPHANED)
NEXT = [Moment(6.1, Kind.CALL, "word_count", worker="B"), Moment(6.2, Kind.RESULT, number=WORDS)]
ANSWERED = [*UNTIL, KILL, BACK, ERROR, *NEXT]
LATE = replace(ERROR, at=KILL.at + LEASE + GRACE_SECONDS + 0.01)


def kill_faults(moments: list[Moment] = ANSWERED, b: Figures | None = None) -> list[str]:
    """The verdict on scene 2."""
    figures = {"B": counted(outcome="caught_up", replayed=0, followed=1, more=orphans(1)) if b is None else b}
    return of_kill(moments, figures, STEPS, LEASE, WORDS)


def test_verdict_on_a_good_answer_has_no_faults() -> None:
    """The error comes, alone or after an event that was stored and not sent, and the session goes on."""
    assert kill_faults() == []
    assert (
        kill_faults([*UNTIL, KILL, BACK, *progress(5), ERROR, *NEXT], counted(replayed=1, followed=1, more=orphans(1)))
        == []
    )
    assert kill_faults([*UNTIL, KILL, *progress(5), BACK, ERROR, *NEXT]) == []


@pytest.mark.parametrize(
    ("moments", "fault"),
    [
        ([*UNTIL, *progress(5), ERROR, *NEXT], "the worker that ran the call was not killed"),
        ([*UNTIL, replace(KILL, number=15), BACK, ERROR, *NEXT], "the worker that ran the call was not killed"),
        ([*UNTIL, replace(KILL, worker="B"), BACK, ERROR, *NEXT], "the worker that ran the call was not killed"),
        ([CALL, KILL, BACK, ERROR, *NEXT], "the kill was not in the middle"),
        ([CALL, *progress(*range(1, STEPS + 1)), KILL, BACK, ERROR, *NEXT], "the kill was not in the middle"),
        ([*UNTIL, KILL, ERROR, *NEXT], "the client did not reconnect after the kill"),
        ([*UNTIL, KILL, BACK], "the call of the killed worker received no error"),
        ([*UNTIL, KILL, BACK, RESULT, *NEXT], "the call of the killed worker returned a result"),
        (
            [*UNTIL, KILL, BACK, replace(ERROR, number=EVENTS_GONE), *NEXT],
            "the call of the killed worker received another error",
        ),
        ([*UNTIL, KILL, BACK, LATE, *NEXT], "the error arrived 3.0 s after the kill, later than 3 s"),
        ([*UNTIL, KILL, BACK, ERROR], "the session did not continue: its next call did not return"),
        ([*UNTIL, KILL, BACK, ERROR, NEXT[0], RESULT], "the session did not continue: its next call did not return"),
        ([*UNTIL, KILL, BACK, ERROR, NEXT[0], Moment(6.2, Kind.FAILURE, "404")], "the session did not continue: 404"),
        ([*UNTIL, KILL, BACK, ERROR, NEXT[1]], "unknown whether another worker served the next call"),
        ([*ANSWERED, *progress(5)], "events arrived after the error"),
        ([*UNTIL, KILL, BACK, UNTIL[-1], ERROR, *NEXT], "events arrived more than once: 4"),
        ([*UNTIL, KILL, BACK, *progress(6), ERROR, *NEXT], "events never arrived: 5"),
        ([*UNTIL[:-2], UNTIL[-1], UNTIL[-2], KILL, BACK, ERROR, *NEXT], "events arrived out of order"),
        ([], "the worker that ran the call was not killed"),
    ],
)
def test_verdict_reports_faults_after_a_kill(moments: list[Moment], fault: str) -> None:
    """No kill, no error, another one, too late a one, a session that ends, and events that are not as they were."""
    assert any(text.startswith(fault) for text in kill_faults(moments))


@pytest.mark.parametrize(
    ("figures", "fault"),
    [
        (counted(replayed=0, followed=1), "1 requests were orphaned, but /metrics counts 0"),
        (NOTHING, "1 messages arrived on the resumed stream, but /metrics of B counts 0"),
        (counted(replayed=1, followed=1), "1 messages arrived on the resumed stream, but /metrics of B counts 2"),
        (counted(replayed=0, followed=1, more=f"{names.ERRORS} 1\n"), "/metrics of B reports 1 failed operations"),
    ],
)
def test_verdict_reports_faults_of_the_surviving_worker(figures: Figures, fault: str) -> None:
    """The worker that is left has sent what the client got, and the error, and nothing else."""
    assert any(text.startswith(fault) for text in kill_faults(b=figures))


# -- the figures ------------------------------------------------------------------------------------------------------


TASK = [
    Moment(0.0, Kind.TASK, "countdown", worker="A"),
    Moment(0.1, Kind.LEFT),
    Moment(1.0, Kind.STATUS, "T-2", worker="B"),
    Moment(2.0, Kind.RESULT, "6 steps counted", 6, "B"),
    Moment(2.1, Kind.SIGNAL, "demo://launches", worker="B"),
]


def test_verdict_on_a_task_that_outlived_its_client_has_no_faults() -> None:
    """The other worker had its progress, its result and its signal."""
    assert of_task(TASK, "A", "B", 6) == []


@pytest.mark.parametrize(
    ("left_out", "more", "fault"),
    [
        (Kind.TASK, [], "no task was created on worker A"),
        (Kind.LEFT, [], "did not leave"),
        (Kind.STATUS, [], "no poll showed the progress"),
        (Kind.RESULT, [], "did not have the result of the task once"),
        (Kind.RESULT, [Moment(2.0, Kind.RESULT, "", 6, "A")], "did not have the result of the task once"),
        (Kind.RESULT, [Moment(2.0, Kind.RESULT, "", 5, "B")], "did not have the result of the task once"),
        (None, [Moment(3.0, Kind.RESULT, "", 6, "B")], "did not have the result of the task once"),
        (None, [Moment(3.0, Kind.FAILURE, "gone", 1, "B")], "the task failed: gone"),
        (Kind.SIGNAL, [], "was not signalled on worker B"),
        (Kind.SIGNAL, [Moment(2.1, Kind.SIGNAL, "", worker="A")], "was not signalled on worker B"),
    ],
)
def test_verdict_reports_faults_of_a_task(left_out: Kind | None, more: list[Moment], fault: str) -> None:
    """Each part of the scene must be there, from the right worker, once."""
    moments = [*(moment for moment in TASK if moment.kind is not left_out), *more]
    assert any(fault in found for found in of_task(moments, "A", "B", 6))


@pytest.mark.parametrize(
    ("moments", "faults"),
    [
        ([Moment(1.0, Kind.FAILURE, "", REQUEST_ORPHANED, "B")], 0),
        ([], 1),
        ([Moment(1.0, Kind.FAILURE, "", -32603, "B")], 1),
        ([Moment(1.0, Kind.FAILURE, "", REQUEST_ORPHANED, "B"), Moment(2.0, Kind.RESULT, "", 6, "B")], 1),
    ],
)
def test_task_of_a_killed_worker_must_fail_once(moments: list[Moment], faults: int) -> None:
    """With the error that warns that it may have taken effect."""
    assert len(of_orphaned_task(moments, "B")) == faults


def test_figures_add_up_and_subtract() -> None:
    """The samples of all workers are one sum, and those of a scene are what was added in it."""
    one = Figures.of('a_count{x="1"} 2\na_sum{x="1"} 3\na_count{x="2"} 4\na_sum{x="2"} 3\n')
    both = Figures.sum([one, one])
    assert both.total("a_count", x="1") == 4
    assert both.by("a_count", "x") == {"1": 4, "2": 8}
    assert both.mean("a") == 1
    assert both.mean("b") is None
    assert both.since(one).by("a_count", "x") == {"1": 2, "2": 4}


def test_every_figure_is_in_the_catalog() -> None:
    """A metric that is renamed is renamed here too, and not quietly zero."""
    declared = {metric.name for metric in catalog.METRICS}
    shown = {value for name, value in vars(names).items() if name.isupper()}
    assert shown
    assert shown <= declared
