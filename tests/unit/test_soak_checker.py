"""The checker of the soak finds each class of violation in histories made by hand."""

from dataclasses import replace

import pytest

from soak.checker import Verdict, check
from soak.history import INITIALIZE, PUBLISH, SDK, STANDALONE, Kind, Observation, Operation, Outcome, What
from soak.rules import DEFAULT_RULES, EVENTS_GONE, ORPHANED, Allowance, Class

RUNNER, OTHER = 1, 2
SESSION = "3.1"


class History:
    """A handwritten history: each observation is one step later."""

    def __init__(self) -> None:
        self.observations: list[Observation] = []
        self.at = 0.0
        self.step = 1.0

    def add(self, what: What, **values: object) -> "History":
        """Add an observation, one step after the last."""
        self.at += self.step
        self.observations.append(Observation(self.at, what, **values))  # type: ignore[arg-type]
        return self

    def check(self, *, complete: bool = True) -> Verdict:
        """End the run, and check it."""
        if complete:
            self.add(What.END)
        return check(self.observations)

    def classes(self) -> list[Class]:
        """Return the classes of the violations, in the order of time."""
        return [one.kind for one in sorted(self.check().violations, key=lambda one: one.at)]


class Call:
    """One call, or one standalone stream, within a history."""

    def __init__(self, history: History, stream: str = "call-7", **values: object) -> None:
        self._history = history
        self._values: dict[str, object] = {"client": 3, "session": SESSION, "stream": stream}
        self._connection: dict[str, object] = {}
        self._ids = 0
        self._prefix = stream
        if stream != STANDALONE:
            self._add(What.CALL, **{"kind": "count", "number": 3, "request": "7", **values})

    def post(self, worker: int = RUNNER) -> "Call":
        """The POST is accepted, and its stream begins with a priming event."""
        self._connection = {"worker": worker, "operation": Operation.POST, "connection": 0}
        self._add(What.BEGAN)
        return self.event(Kind.PRIMING)

    def resume(self, cursor: str | None = None, worker: int = OTHER, operation: str = Operation.RESUME) -> "Call":
        """A GET begins, at the last event unless a cursor is given."""
        connection = int(str(self._connection.get("connection", -1))) + 1
        self._connection = {"worker": worker, "operation": operation, "connection": connection}
        return self._add(What.BEGAN, id=self.last if cursor is None else cursor)

    @property
    def last(self) -> str:
        """The id of the last event."""
        return f"{self._ids}.{self._prefix}" if self._ids else ""

    def event(self, kind: Kind, event_id: str | None = None, **values: object) -> "Call":
        """An event arrives, with the next id unless one is given."""
        if event_id is None:
            self._ids += 1
            event_id = self.last
        return self._add(What.EVENT, kind=kind, id=event_id, **values)

    def numbers(self, *numbers: int) -> "Call":
        """Notifications arrive."""
        for number in numbers:
            self.event(Kind.NOTIFICATION, number=number)
        return self

    def result(self, number: int = 3, request: str = "7", **values: str) -> "Call":
        """The result arrives."""
        return self.event(Kind.RESULT, number=number, request=request, **values)

    def error(self, code: int, request: str = "7") -> "Call":
        """An error arrives as the response."""
        return self.event(Kind.ERROR, code=code, request=request)

    def note(self, what: What, **values: object) -> "Call":
        """Anything else happens to the connection."""
        return self._add(what, **values)

    def refused(self, code: int, operation: str, worker: int = OTHER, kind: str = "status") -> "Call":
        """A request is refused."""
        return self._add(What.REFUSED, code=code, kind=kind, worker=worker, operation=operation)

    def done(self, outcome: Outcome) -> "Call":
        """The client is done with it."""
        return self._add(What.DONE, kind=outcome)

    def fault(self, what: What, **values: object) -> "Call":
        """A fault happens meanwhile."""
        self._history.add(what, **values)
        return self

    def _add(self, what: What, **values: object) -> "Call":
        self._history.add(what, **{**self._values, **self._connection, **values})
        return self


@pytest.fixture
def history() -> History:
    """An empty history, of a session that was opened on the worker that runs the calls."""
    return History().add(What.OPENED, client=3, session=SESSION, worker=RUNNER)


def test_checker_of_a_cut_and_resumed_call_finds_nothing(history: History) -> None:
    """A call cut twice that received everything is correct; the resume repeats the cursor."""
    call = Call(history).post().numbers(1).note(What.CUT)
    cursor = call.last
    call.resume().event(Kind.PRIMING, cursor).numbers(2).note(What.CUT).resume().numbers(3).result()
    call.done(Outcome.RESULT)
    verdict = history.check()
    assert verdict.violations == []
    assert not verdict.allowed


def test_checker_of_a_call_that_gave_up_finds_a_hang(history: History) -> None:
    """A call whose client gave up is a hang."""
    Call(history).post().numbers(1).done(Outcome.GAVE_UP)
    assert history.classes() == [Class.HANG]


def test_checker_of_a_call_without_outcome_finds_a_hang_at_the_end_only(history: History) -> None:
    """It is a hang in a complete history, and none in one that was cut short."""
    Call(history).post().numbers(1)
    assert history.check(complete=False).violations == []
    assert history.classes() == [Class.HANG]


def test_checker_of_an_unanswered_delete_finds_a_hang(history: History) -> None:
    """An unanswered notification or DELETE is a hang, too."""
    history.add(What.DONE, client=3, session=SESSION, stream="delete", operation="delete", kind=Outcome.GAVE_UP)
    assert history.classes() == [Class.HANG]


@pytest.mark.parametrize("numbers", [(1, 3), (1, 2), (2, 3), ()])
def test_checker_of_a_missing_notification_finds_a_loss(history: History, numbers: tuple[int, ...]) -> None:
    """A result without all its notifications is a loss, wherever they are missing."""
    Call(history).post().numbers(*numbers).result().done(Outcome.RESULT)
    assert history.classes() == [Class.LOST]


def test_checker_of_a_hole_before_an_error_finds_a_loss(history: History) -> None:
    """Before an error the last notifications may be missing, but none in the middle."""
    Call(history).post().numbers(1, 3).fault(What.WORKER_KILLED, worker=RUNNER).error(ORPHANED).done(Outcome.ERROR)
    assert history.classes() == [Class.LOST]


def test_checker_of_a_repeated_notification_finds_a_duplicate(history: History) -> None:
    """The same number twice is a duplicate, under whichever id."""
    Call(history).post().numbers(1, 2).resume().numbers(2, 3).result().done(Outcome.RESULT)
    assert history.classes() == [Class.DUPLICATE]


def test_checker_of_a_second_response_finds_a_duplicate(history: History) -> None:
    """A second response is a duplicate."""
    Call(history).post().numbers(1, 2, 3).result().result().done(Outcome.RESULT)
    assert history.classes() == [Class.DUPLICATE]


@pytest.mark.parametrize("late", ["before another", "after the result"])
def test_checker_of_a_late_notification_finds_disorder(history: History, late: str) -> None:
    """A number after a higher one, or after the response, is out of order."""
    call = Call(history).post()
    if late == "before another":
        call.numbers(1, 3, 2).result()
    else:
        call.numbers(1, 2).result().numbers(3)
    call.done(Outcome.RESULT)
    assert history.classes() == [Class.ORDER]


@pytest.mark.parametrize("kind", [Kind.PRIMING, Kind.NOTIFICATION, Kind.RESULT])
def test_checker_of_an_event_without_id_finds_it(history: History, kind: Kind) -> None:
    """An event without an id is found, whatever its kind."""
    call = Call(history, number=1).post()
    if kind is Kind.PRIMING:
        call.event(Kind.PRIMING, "")
    call.event(Kind.NOTIFICATION, "" if kind is Kind.NOTIFICATION else None, number=1)
    call.event(Kind.RESULT, "" if kind is Kind.RESULT else None, number=1, request="7").done(Outcome.RESULT)
    assert history.classes() == [Class.NO_ID]


@pytest.mark.parametrize("killed", [False, True])
def test_checker_of_a_cut_call_without_cursor_finds_it(history: History, *, killed: bool) -> None:
    """It is allowed when its worker was killed first."""
    call = Call(history).post()
    if killed:
        call.fault(What.WORKER_KILLED, worker=RUNNER)
    call.note(What.CUT).done(Outcome.NO_CURSOR)
    assert history.classes() == ([] if killed else [Class.NO_CURSOR])


def test_checker_of_an_id_on_two_messages_finds_it(history: History) -> None:
    """An id that two messages of a stream carry is found."""
    call = Call(history).post().numbers(1, 2)
    call.event(Kind.NOTIFICATION, "2.call-7", number=3).result().done(Outcome.RESULT)
    assert history.classes() == [Class.ID_REUSED]


def test_checker_of_an_id_in_two_calls_finds_it(history: History) -> None:
    """An id that messages of two calls of a session carry is found."""
    Call(history).post().numbers(1, 2, 3).result().done(Outcome.RESULT)
    other = Call(history, "call-8", number=1).post()
    other.event(Kind.NOTIFICATION, "2.call-7", number=1).result(1).done(Outcome.RESULT)
    assert history.classes() == [Class.ID_REUSED]


def test_checker_of_a_priming_event_with_another_id_finds_it(history: History) -> None:
    """A priming event may repeat the cursor of its resume, and no other id."""
    call = Call(history).post().numbers(1, 2).note(What.CUT).resume()
    call.event(Kind.PRIMING, "2.call-7").numbers(3).result().done(Outcome.RESULT)
    assert history.classes() == [Class.ID_REUSED]


@pytest.mark.parametrize(
    "wrong",
    ["notification", "number", "request id", "result"],
)
def test_checker_of_a_message_of_another_call_finds_it(history: History, wrong: str) -> None:
    """A message that the call was not promised is found: `"7"` is not `7`."""
    call = Call(history).post().numbers(1, 2, 3)
    if wrong == "notification":
        call.event(Kind.FOREIGN, note="{}")
    if wrong == "number":
        call.numbers(4)
    call.result(4 if wrong == "result" else 3, '"7"' if wrong == "request id" else "7").done(Outcome.RESULT)
    assert history.classes() == [Class.FOREIGN]


@pytest.mark.parametrize("operation", list(Operation))
def test_checker_of_404_for_a_live_session_finds_it(history: History, operation: Operation) -> None:
    """A 404 is found, whatever the client requested."""
    Call(history).post().refused(404, operation).done(Outcome.REFUSED)
    assert history.classes() == [Class.NOT_FOUND]


@pytest.mark.parametrize("code", [-32603, ORPHANED, EVENTS_GONE])
def test_checker_of_an_error_while_its_worker_lives_finds_it(history: History, code: int) -> None:
    """The error is found, though another worker was killed."""
    call = Call(history).fault(What.WORKER_KILLED, worker=OTHER).fault(What.REDIS_KILLED, kind="empty").post()
    call.fault(What.REDIS_BACK).error(code).done(Outcome.ERROR)
    assert history.classes() == [Class.ERROR]


def test_checker_of_an_error_after_its_worker_was_killed_allows_it(history: History) -> None:
    """-32010 is allowed and counted for a call whose worker was killed while it ran."""
    Call(history).post().numbers(1).fault(What.WORKER_KILLED, worker=RUNNER).resume().error(ORPHANED).done(
        Outcome.ERROR
    )
    verdict = history.check()
    assert verdict.violations == []
    assert dict(verdict.allowed) == {"-32010, its worker was killed": 1}


def test_checker_of_an_error_after_an_earlier_kill_finds_it(history: History) -> None:
    """-32010 is not allowed for a call accepted after its worker restarted."""
    history.add(What.WORKER_KILLED, worker=RUNNER).add(What.WORKER_BACK, worker=RUNNER)
    Call(history).post().resume().error(ORPHANED).done(Outcome.ERROR)
    assert history.classes() == [Class.ERROR]


@pytest.mark.parametrize(("seconds", "allowed"), [(1, False), (2, True)])
def test_checker_of_an_error_after_a_freeze_allows_it_past_the_lease_only(
    history: History, seconds: int, *, allowed: bool
) -> None:
    """-32010 is allowed after a freeze longer than the lease, and not after a short one."""
    call = Call(history).post().fault(What.WORKER_FROZEN, worker=RUNNER)
    history.at += seconds - 1
    call.fault(What.WORKER_THAWED, worker=RUNNER).error(ORPHANED).done(Outcome.ERROR)
    assert history.classes() == ([] if allowed else [Class.ERROR])


@pytest.mark.parametrize("lost", [None, What.REDIS_KILLED, What.REDIS_FLUSHED, What.REDIS_CUTTING])
def test_checker_of_an_error_after_redis_lost_data_finds_it(history: History, lost: What | None) -> None:
    """-32011 is never allowed while the worker of the call lives: it has the events in memory."""
    call = Call(history).post().numbers(1)
    if lost is not None:
        call.fault(lost)
    call.resume().error(EVENTS_GONE).done(Outcome.ERROR)
    assert history.classes() == [Class.ERROR]


@pytest.mark.parametrize(
    ("lost", "allowed"), [(What.REDIS_KILLED, True), (What.REDIS_FLUSHED, True), (What.REDIS_CUTTING, False)]
)
def test_checker_of_an_error_after_a_loss_and_a_kill_allows_it(history: History, lost: What, *, allowed: bool) -> None:
    """FLUSHALL loses data as a kill does; cut connections lose none."""
    call = Call(history).post().numbers(1).fault(lost).fault(What.WORKER_KILLED, worker=RUNNER)
    call.resume().error(EVENTS_GONE).done(Outcome.ERROR)
    assert history.classes() == ([] if allowed else [Class.ERROR])


@pytest.mark.parametrize("fault", [What.REDIS_CUTTING, What.REDIS_FLUSHED])
@pytest.mark.parametrize("seconds", [0, 10])
def test_checker_of_503_after_a_fault_of_redis_allows_it_for_a_while(
    history: History, fault: What, seconds: int
) -> None:
    """Redis is impaired until a moment after its connections were cut or its data flushed."""
    call = Call(history).post().fault(fault).fault(What.REDIS_MENDED)
    history.at += seconds
    call.refused(503, Operation.RESUME).resume().numbers(1, 2, 3).result().done(Outcome.RESULT)
    assert history.classes() == ([Class.REFUSED] if seconds else [])


@pytest.mark.parametrize("lost", [True, False])
@pytest.mark.parametrize("seconds", [1, 4])
def test_checker_of_an_error_after_a_loss_and_a_freeze_allows_it_past_the_lease_only(
    history: History, seconds: int, *, lost: bool
) -> None:
    """Redis names neither the call nor its worker: -32011. Without the loss it is -32010."""
    call = Call(history).post()
    if lost:
        call.fault(What.REDIS_KILLED, kind="saved")
    call.fault(What.WORKER_FROZEN, worker=RUNNER)
    history.at += seconds - 1
    call.fault(What.WORKER_THAWED, worker=RUNNER).error(EVENTS_GONE).done(Outcome.ERROR)
    assert history.classes() == ([] if lost and seconds == 4 else [Class.ERROR])


@pytest.mark.parametrize("outage", [True, False])
def test_checker_of_an_error_of_a_worker_killed_in_an_outage_allows_it(history: History, *, outage: bool) -> None:
    """The call began in the outage, and its worker could store nothing before it was killed."""
    if outage:
        history.add(What.REDIS_FROZEN)
    call = Call(history).post().fault(What.WORKER_KILLED, worker=RUNNER).fault(What.REDIS_THAWED)
    call.resume().error(EVENTS_GONE).done(Outcome.ERROR)
    assert history.classes() == ([] if outage else [Class.ERROR])


@pytest.mark.parametrize("stored", [True, False])
def test_checker_of_an_error_after_a_stored_event_finds_it(history: History, *, stored: bool) -> None:
    """Another worker has read an event of the call, so Redis names the call: -32010 is due."""
    history.add(What.REDIS_FROZEN)
    call = Call(history).post().numbers(1).fault(What.REDIS_THAWED)
    call.resume()
    if stored:
        call.numbers(2)
    call.fault(What.WORKER_KILLED, worker=RUNNER).error(EVENTS_GONE).done(Outcome.ERROR)
    assert history.classes() == ([Class.ERROR] if stored else [])


@pytest.mark.parametrize("fault", [What.WORKER_KILLED, What.WORKER_FROZEN])
@pytest.mark.parametrize("seconds", [0, 30])
def test_checker_of_an_error_after_a_restored_loss_finds_it(history: History, fault: What, seconds: int) -> None:
    """A worker that fails long after the loss has stored its events again: -32010 is due."""
    call = Call(history).post().numbers(1).fault(What.REDIS_FLUSHED)
    history.at += seconds
    call.fault(fault, worker=RUNNER).resume().error(EVENTS_GONE).done(Outcome.ERROR)
    assert history.classes() == ([Class.ERROR] if seconds else [])


def test_checker_of_an_error_after_a_loss_since_the_freeze_finds_it(history: History) -> None:
    """A worker that runs again stores its events again."""
    call = Call(history).post().numbers(1).fault(What.WORKER_FROZEN, worker=RUNNER)
    history.at += 10
    call.fault(What.WORKER_THAWED, worker=RUNNER)
    history.at += 10
    call.fault(What.REDIS_FLUSHED).resume().error(EVENTS_GONE).done(Outcome.ERROR)
    assert history.classes() == [Class.ERROR]


@pytest.mark.parametrize("late", [True, False])
def test_checker_of_a_late_rig_takes_faults_before_the_observation_into_account(*, late: bool) -> None:
    """The worker accepted the call, or opened the session, before it was killed; the rig saw it afterwards."""
    history = History()
    Call(history, "call-1", request="1").post(OTHER).numbers(1, 2, 3).result(request="1").done(Outcome.RESULT)
    call = Call(history).fault(What.REDIS_FROZEN).fault(What.WORKER_KILLED, worker=RUNNER)
    if late:
        history.add(What.LAG, number=1500)
    history.add(What.OPENED, client=3, session=SESSION, worker=RUNNER)
    if late:
        history.add(What.LAG, number=1900)
        history.at -= 0.9
    call.post().fault(What.REDIS_THAWED).refused(404, Operation.NOTIFY).resume().error(ORPHANED).done(Outcome.ERROR)
    assert history.classes() == ([] if late else [Class.NOT_FOUND, Class.ERROR])


@pytest.mark.parametrize("killed", [[], ["redis"], ["worker"], ["redis", "worker"]])
def test_checker_of_lost_events_allows_them_after_redis_and_worker_failed_only(
    history: History, killed: list[str]
) -> None:
    """-32011 is allowed only when Redis lost data and the worker was killed during the call."""
    call = Call(history).post().numbers(1)
    if "redis" in killed:
        call.fault(What.REDIS_KILLED, kind="empty").fault(What.REDIS_BACK)
    if "worker" in killed:
        call.fault(What.WORKER_KILLED, worker=RUNNER)
    call.resume().error(EVENTS_GONE).done(Outcome.ERROR)
    assert history.classes() == ([] if len(killed) == 2 else [Class.ERROR])


@pytest.mark.parametrize("code", [0, 503])
def test_checker_of_a_retried_post_counts_it(history: History, code: int) -> None:
    """A POST that gets 503 or no connection is retried, and counted."""
    call = Call(history).refused(code, Operation.POST).post().numbers(1, 2, 3).result()
    call.done(Outcome.RESULT)
    verdict = history.check()
    assert verdict.violations == []
    assert sum(verdict.allowed.values()) == 1


@pytest.mark.parametrize(
    ("code", "operation"),
    [
        (500, Operation.POST),
        (409, Operation.LISTEN),
        (400, Operation.RESUME),
        (503, Operation.RESUME),
        (0, Operation.RESUME),
    ],
)
def test_checker_of_a_refused_request_finds_it(history: History, code: int, operation: Operation) -> None:
    """Any other refusal is found, of a resume also 503 or no connection without a fault."""
    call = Call(history).post().refused(code, operation)
    call.resume().numbers(1, 2, 3).result().done(Outcome.RESULT)
    assert history.classes() == [Class.REFUSED]


def test_checker_of_a_resume_refused_in_a_fault_allows_it(history: History) -> None:
    """A resume may meet a dead worker, or 503 while Redis is impaired."""
    call = Call(history).post().fault(What.WORKER_KILLED, worker=OTHER).refused(0, Operation.RESUME)
    call.fault(What.REDIS_FROZEN).refused(503, Operation.RESUME, RUNNER).fault(What.REDIS_THAWED)
    call.resume(worker=RUNNER).numbers(1, 2, 3).result().done(Outcome.RESULT)
    assert history.classes() == []


@pytest.mark.parametrize(("code", "fault"), [(0, What.WORKER_KILLED), (503, What.REDIS_FROZEN), (503, What.LAG)])
@pytest.mark.parametrize("faulty", [False, True])
def test_checker_of_a_refused_delete_allows_it_in_a_fault_only(
    history: History, code: int, fault: What, *, faulty: bool
) -> None:
    """A DELETE may meet a dead worker, or 503 while Redis is impaired."""
    if faulty:
        history.add(fault, worker=OTHER)
    history.add(What.REFUSED, session=SESSION, stream="delete", operation="delete", worker=OTHER, code=code)
    assert history.classes() == ([] if faulty else [Class.REFUSED])


@pytest.mark.parametrize("killed", [False, True])
def test_checker_of_a_post_without_response_finds_it(history: History, *, killed: bool) -> None:
    """It is allowed when its worker was killed."""
    call = Call(history)
    if killed:
        call.fault(What.WORKER_KILLED, worker=RUNNER)
    call.refused(0, Operation.POST, RUNNER, "unanswered").note(What.DONE, kind=Outcome.UNANSWERED, worker=RUNNER)
    assert history.classes() == ([] if killed else [Class.UNANSWERED])


def test_checker_of_a_resume_without_response_finds_it(history: History) -> None:
    """A GET whose connection broke before the response is found."""
    call = Call(history).post().refused(0, Operation.RESUME, OTHER, "unanswered")
    call.resume().numbers(1, 2, 3).result().done(Outcome.RESULT)
    assert history.classes() == [Class.UNANSWERED]


@pytest.mark.parametrize("killed", [False, True])
def test_checker_of_a_broken_stream_finds_it(history: History, *, killed: bool) -> None:
    """It is allowed when its worker was killed."""
    call = Call(history).post().numbers(1)
    if killed:
        call.fault(What.WORKER_KILLED, worker=RUNNER)
    call.note(What.BROKEN).resume().numbers(2, 3).result().done(Outcome.RESULT)
    assert history.classes() == ([] if killed else [Class.BROKEN])


def test_checker_of_a_worker_that_died_finds_it(history: History) -> None:
    """A worker that ended without a fault is found."""
    history.add(What.WORKER_DIED, worker=RUNNER)
    assert history.classes() == [Class.WORKER_DIED]


def test_checker_of_initialize_judges_it_as_a_call(history: History) -> None:
    """The stream of `initialize` is judged like that of any call."""
    call = Call(history, "initialize 0", kind=INITIALIZE, number=0, request='"init"').post()
    call.event(Kind.RESULT, "", request='"init"').done(Outcome.RESULT)
    assert history.classes() == [Class.NO_ID]


def _publish(history: History, number: int, worker: int = RUNNER) -> None:
    call = Call(history, f"call-{number}", kind=PUBLISH, number=0, request=str(number), published=number)
    call.post(worker).result(0, str(number)).done(Outcome.RESULT)


def test_checker_of_a_complete_standalone_stream_finds_nothing(history: History) -> None:
    """Order between two workers is undefined; each number came once, over two connections."""
    _publish(history, 1)
    _publish(history, 2, OTHER)
    _publish(history, 3)
    standalone = Call(history, STANDALONE).resume(operation=Operation.LISTEN).numbers(2, 1)
    standalone.note(What.CUT).resume(operation=Operation.LISTEN).numbers(3).done(Outcome.STOPPED)
    assert history.classes() == []


def test_checker_of_a_restarted_publisher_allows_another_order(history: History) -> None:
    """A restarted worker is another writer, so that its numbers may come first."""
    _publish(history, 1)
    history.add(What.WORKER_KILLED, worker=RUNNER).add(What.WORKER_BACK, worker=RUNNER)
    _publish(history, 2)
    Call(history, STANDALONE).resume(operation=Operation.LISTEN).numbers(2, 1).done(Outcome.STOPPED)
    assert history.classes() == []


@pytest.mark.parametrize(
    ("numbers", "found"),
    [
        ((1,), Class.LOST),
        ((2,), Class.LOST),
        ((1, 2, 2), Class.DUPLICATE),
        ((2, 1), Class.ORDER),
        ((1, 2, 9), Class.FOREIGN),
    ],
)
def test_checker_of_a_wrong_standalone_stream_finds_it(
    history: History, numbers: tuple[int, ...], found: Class
) -> None:
    """Lost, duplicate, foreign and disordered messages of a standalone stream are found."""
    _publish(history, 1)
    _publish(history, 2)
    Call(history, STANDALONE).resume(operation=Operation.LISTEN).numbers(*numbers).done(Outcome.STOPPED)
    assert history.classes() == [found]


def test_checker_of_a_broken_standalone_stream_finds_it(history: History) -> None:
    """A standalone connection that the server broke is found."""
    Call(history, STANDALONE).resume(operation=Operation.LISTEN).note(What.BROKEN).done(Outcome.STOPPED)
    assert history.classes() == [Class.BROKEN]


def test_checker_of_a_standalone_message_without_id_finds_it(history: History) -> None:
    """A message of a standalone stream without an id is found."""
    _publish(history, 1)
    standalone = Call(history, STANDALONE).resume(operation=Operation.LISTEN)
    standalone.event(Kind.NOTIFICATION, "", number=1).done(Outcome.STOPPED)
    assert history.classes() == [Class.NO_ID]


@pytest.mark.parametrize(
    ("faults", "allowed"),
    [
        ([], False),
        ([What.WORKER_KILLED], True),
        ([What.REDIS_FROZEN, What.REDIS_THAWED, What.WORKER_KILLED], True),
        ([What.REDIS_KILLED, What.REDIS_BACK], False),
        ([What.BEGIN] * 20 + [What.WORKER_KILLED], False),
        ([What.BEGIN] * 20 + [What.REDIS_KILLED, What.REDIS_BACK, What.WORKER_KILLED], True),
    ],
)
def test_checker_of_a_lost_standalone_message_allows_it_after_a_kill_only(
    history: History, faults: list[What], *, allowed: bool
) -> None:
    """It may be lost with its worker before it was stored, or with its worker and Redis."""
    history.step = 0.1
    _publish(history, 1)
    for fault in faults:
        history.add(fault, worker=RUNNER if fault is What.WORKER_KILLED else -1)
    Call(history, STANDALONE).resume(operation=Operation.LISTEN).done(Outcome.STOPPED)
    assert history.classes() == ([] if allowed else [Class.LOST])


@pytest.mark.parametrize("allowed", [False, True])
def test_checker_of_404_for_a_session_opened_in_an_outage_allows_it(*, allowed: bool) -> None:
    """It is allowed when only a worker killed in the outage can have known the session."""
    history = History().add(What.REDIS_FROZEN)
    history.add(What.OPENED, client=3, session=SESSION, worker=RUNNER)
    history.add(What.WORKER_KILLED, worker=RUNNER if allowed else OTHER).add(What.REDIS_THAWED)
    Call(history).refused(404, Operation.POST).done(Outcome.REFUSED)
    assert history.classes() == ([] if allowed else [Class.NOT_FOUND])


@pytest.mark.parametrize(
    ("faults", "allowed"),
    [
        ([What.REDIS_KILLED], False),
        ([What.WORKER_FROZEN], False),
        ([What.REDIS_KILLED, What.WORKER_FROZEN], True),
        ([What.REDIS_KILLED, What.WORKER_KILLED], True),
        ([What.WORKER_KILLED, What.REDIS_KILLED], True),
    ],
)
@pytest.mark.parametrize("others", [0, 1])
def test_checker_of_404_for_a_session_that_redis_lost_allows_it_if_all_its_workers_failed(
    history: History, faults: list[What], others: int, *, allowed: bool
) -> None:
    """Another worker that has served the session records it again."""
    history.add(What.OPENED, client=3, session=SESSION, worker=RUNNER)
    call = Call(history).post()
    for _ in range(others):
        call.resume(worker=OTHER)
    history.step = 0.5
    for fault in faults:
        history.add(fault, worker=-1 if fault is What.REDIS_KILLED else RUNNER)
    history.add(What.REDIS_BACK)
    history.at += 3
    Call(history, "call-8").refused(404, Operation.POST, worker=2).done(Outcome.REFUSED)
    found = [each for each in history.classes() if each is Class.NOT_FOUND]
    assert found == ([] if allowed and not others else [Class.NOT_FOUND])


@pytest.mark.parametrize(("before", "after", "allowed"), [(0, 0, True), (0, 10, False), (10, 0, False)])
def test_checker_of_404_for_a_session_that_is_not_recorded_yet_allows_it_while_connections_are_cut(
    history: History, before: float, after: float, *, allowed: bool
) -> None:
    """The worker that has opened it cannot reach Redis, and other workers can."""
    history.step = 0.3
    history.add(What.OPENED, client=3, session=SESSION, worker=RUNNER)
    history.at += before
    history.add(What.REDIS_CUTTING).add(What.REDIS_MENDED)
    history.at += after
    Call(history).refused(404, Operation.POST).done(Outcome.REFUSED)
    assert history.classes() == ([] if allowed else [Class.NOT_FOUND])


def _of_sdk(history: History, carried: tuple[int, ...], passed_on: tuple[int, ...]) -> Call:
    """A call of the SDK's client, and what it passes to the application."""
    call = Call(history, note=SDK).post().numbers(*carried).result()
    for number in passed_on:
        call.note(What.PASSED_ON, number=number)
    return call


@pytest.mark.parametrize("passed_on", [(1, 2, 3), (1, 2), (1, 3, 2), (1, 2, 2, 3), ()])
def test_checker_of_the_sdk_client_compares_what_it_passes_on(history: History, passed_on: tuple[int, ...]) -> None:
    """The application received other notifications than the connections carried, or in another order."""
    _of_sdk(history, (1, 2, 3), passed_on).done(Outcome.RESULT)
    assert history.classes() == ([] if passed_on == (1, 2, 3) else [Class.PASSED_ON])


def test_checker_of_a_strict_client_expects_nothing_passed_on(history: History) -> None:
    """It has no application."""
    Call(history).post().numbers(1, 2, 3).result().done(Outcome.RESULT)
    assert history.classes() == []


@pytest.mark.parametrize("passed_on", [(1, 2), (2,)])
def test_checker_of_a_standalone_stream_of_the_sdk_client_compares_what_it_passes_on(
    history: History, passed_on: tuple[int, ...]
) -> None:
    """The standalone stream is compared as calls are."""
    _publish(history, 1)
    _publish(history, 2)
    standalone = Call(history, STANDALONE).resume(operation=Operation.LISTEN).numbers(1, 2)
    for number in passed_on:
        standalone.note(What.PASSED_ON, number=number)
    standalone.done(Outcome.STOPPED)
    assert history.classes() == ([] if passed_on == (1, 2) else [Class.PASSED_ON])


@pytest.mark.parametrize("older", [True, False])
def test_checker_of_a_resume_from_an_older_cursor_expects_those_events_again(history: History, *, older: bool) -> None:
    """After a broken resume the SDK's client resumes from an older cursor, and is owed what follows it."""
    call = Call(history).post().numbers(1)
    cursor = call.last
    call.numbers(2).note(What.CUT).resume(cursor if older else None)
    call.event(Kind.NOTIFICATION, "3.call-7", number=2).numbers(3).result().done(Outcome.RESULT)
    found = history.classes()
    assert (Class.DUPLICATE in found) is not older


def test_checker_of_an_older_cursor_finds_what_is_lost_after_it(history: History) -> None:
    """What came before the older resume does not count as received."""
    call = Call(history).post().numbers(1)
    cursor = call.last
    call.numbers(2).note(What.CUT).resume(cursor).numbers(3).result().done(Outcome.RESULT)
    assert history.classes() == [Class.LOST]


@pytest.mark.parametrize("refused", [True, False])
def test_checker_of_an_abandoned_call_demands_a_refusal(history: History, *, refused: bool) -> None:
    """The SDK's client may end a call after 503, and not without a reason."""
    call = Call(history, note=SDK)
    if refused:
        call.refused(503, Operation.POST)
    call.done(Outcome.ABANDONED)
    assert history.classes() == ([] if refused else [Class.ABANDONED])


def test_checker_of_a_fault_without_end_takes_it_to_last(history: History) -> None:
    """A worker that did not restart stays down."""
    call = Call(history).post().fault(What.WORKER_KILLED, worker=OTHER)
    history.at += 1000
    call.refused(0, Operation.RESUME).resume(worker=RUNNER).numbers(1, 2, 3).result().done(Outcome.RESULT)
    assert history.classes() == []


def test_checker_with_other_rules_judges_by_them(history: History) -> None:
    """Without its allowance a deviation is a violation."""
    Call(history).post().fault(What.WORKER_KILLED, worker=RUNNER).error(ORPHANED).done(Outcome.ERROR)
    strict = replace(DEFAULT_RULES, allowances=())
    assert [one.kind for one in check(history.observations, strict).violations] == [Class.ERROR]
    loose = replace(DEFAULT_RULES, allowances=(Allowance("any error", Class.ERROR),))
    assert check(history.observations, loose).violations == []


def test_rules_have_distinct_allowance_names() -> None:
    """Allowances are counted by name."""
    names = [allowance.name for allowance in DEFAULT_RULES.allowances]
    assert len(set(names)) == len(names)
