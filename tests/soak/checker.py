"""The checker: a pure function from a history to violations."""

from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace

from soak.history import (
    PUBLISH,
    SDK,
    STANDALONE,
    Kind,
    Observation,
    Operation,
    Outcome,
    What,
    by_stream,
)
from soak.rules import DEFAULT_RULES, Class, Rules, Suspicion, Timeline


@dataclass
class Verdict:
    """The result of a check."""

    violations: list[Suspicion] = field(default_factory=list)
    allowed: Counter[str] = field(default_factory=Counter)
    """Suspicions that an allowance covers, by its name."""

    def by_class(self) -> dict[Class, list[Suspicion]]:
        """Return the violations of each class, in the order of time."""
        ordered = sorted(self.violations, key=lambda one: one.at)
        return {kind: [one for one in ordered if one.kind is kind] for kind in Class}


def check(history: Sequence[Observation], rules: Rules = DEFAULT_RULES) -> Verdict:
    """Judge a history.

    Args:
        history: The observations, in order.
        rules: The deviations that are allowed.
    """
    timeline = Timeline(history, rules)
    verdict = Verdict()
    for suspicion in _suspicions(history, timeline):
        allowance = timeline.allows(suspicion)
        if allowance is None:
            verdict.violations.append(suspicion)
        else:
            verdict.allowed[allowance.name] += 1
    return verdict


def _suspicions(history: Sequence[Observation], timeline: Timeline) -> Iterator[Suspicion]:
    complete = any(one.what is What.END for one in history)
    opened = {one.session: one for one in history if one.what is What.OPENED}
    served = _served(history)
    streams = by_stream(history)
    published: dict[str, list[_Call]] = {}
    for (_, session, _), observations in streams.items():
        if observations[0].what is What.CALL and observations[0].kind == PUBLISH:
            published.setdefault(session, []).append(_Call(observations, timeline))
    for (_, session, stream), observations in streams.items():
        yield from _refusals(observations, opened.get(session), served[session], timeline)
        if stream == STANDALONE:
            yield from _standalone(observations, published.get(session, []), timeline)
        elif observations[0].what is What.CALL:
            yield from _call(_Call(observations, timeline), complete=complete)
        elif observations[-1].kind == Outcome.GAVE_UP:
            last = observations[-1]
            yield _Call(observations, timeline).suspicion(Class.HANG, last, f"{last.operation} was not answered")
    yield from _reused_ids(history)
    for one in history:
        if one.what is What.WORKER_DIED:
            yield Suspicion(Class.WORKER_DIED, one.at, one.at, f"worker {one.worker} ended: {one.note}")


class _Call:
    """The observations of one call, by their meaning.

    Args:
        observations: Those of its stream.
        timeline: The faults.
    """

    def __init__(self, observations: Sequence[Observation], timeline: Timeline) -> None:
        self._timeline = timeline
        self.observations = observations
        self.first = observations[0]
        began = [one for one in observations if one.what is What.BEGAN]
        self.accepted = next((one for one in began if one.operation == Operation.POST), None)
        self.cursors = {one.connection: one.id for one in began}
        self.events = [one for one in observations if one.what is What.EVENT]
        self.broken = [one for one in observations if one.what is What.BROKEN]
        self.refused = [one for one in observations if one.what is What.REFUSED]
        self.passed_on = [one for one in observations if one.what is What.PASSED_ON]
        self.done = next((one for one in observations if one.what is What.DONE), None)
        self.last = observations[-1]

    @property
    def runner(self) -> int:
        """The worker that runs the call: the one that accepted the POST."""
        return self.first.worker if self.accepted is None else self.accepted.worker

    @property
    def since(self) -> float:
        """When it began to run, at the earliest: earlier faults of its worker do not concern it."""
        return self.first.at if self.accepted is None else max(self.first.at, self._timeline.earliest(self.accepted.at))

    def suspicion(self, kind: Class, one: Observation, detail: str) -> Suspicion:
        """Suspect something that an observation shows."""
        return Suspicion(
            kind,
            self.since,
            one.at,
            detail,
            client=self.first.client,
            session=self.first.session,
            stream=self.first.stream,
            runner=self.runner,
            peer=one.worker,
            operation=one.operation,
            code=one.code,
            stored=any(event.worker != self.runner and event.number and event.at < one.at for event in self.events),
        )


def _call(call: _Call, *, complete: bool) -> Iterator[Suspicion]:
    received: list[tuple[str, int]] = []
    answered = False
    for event in call.observations:
        if event.what is What.BEGAN and event.operation == Operation.RESUME:
            received = _until_cursor(received, event.id)
        if event.what is not What.EVENT:
            continue
        seen = {number for _, number in received if number}
        received.append((event.id, event.number if event.kind == Kind.NOTIFICATION else 0))
        if not event.id:
            yield call.suspicion(Class.NO_ID, event, _message(event))
        if event.kind == Kind.FOREIGN:
            yield call.suspicion(Class.FOREIGN, event, event.note)
        elif event.kind == Kind.NOTIFICATION:
            yield from _notification(call, event, seen, answered=answered)
        elif event.kind != Kind.PRIMING:
            yield from _response(call, event, answered=answered)
            answered = True
    for one in call.broken:
        yield call.suspicion(Class.BROKEN, one, f"connection {one.connection} to worker {one.worker}: {one.note}")
    yield from _outcome(call, {number for _, number in received if number}, complete=complete)
    yield from _passed_on(call, {Outcome.RESULT, Outcome.ERROR})


def _until_cursor(received: list[tuple[str, int]], cursor: str) -> list[tuple[str, int]]:
    """The events up to a cursor: those after it are owed again, as to the SDK's client after a broken resume."""
    places = [place for place, (event_id, _) in enumerate(received) if event_id == cursor]
    return received[: places[-1] + 1] if places else received


def _passed_on(stream: _Call, outcomes: set[Outcome]) -> Iterator[Suspicion]:
    """Compare the messages that the SDK's client passed on with those that its connections carried."""
    done = stream.done
    if done is None or done.kind not in outcomes or not (stream.passed_on or stream.first.note == SDK):
        return
    carried = [one.number for one in stream.events if one.kind == Kind.NOTIFICATION and one.at <= done.at]
    passed_on = [one.number for one in stream.passed_on if one.at <= done.at]
    if passed_on != carried:
        yield stream.suspicion(Class.PASSED_ON, done, f"{passed_on} instead of {carried}")


def _notification(call: _Call, event: Observation, seen: set[int], *, answered: bool) -> Iterator[Suspicion]:
    number, promised = event.number, call.first.number
    if number in seen:
        yield call.suspicion(Class.DUPLICATE, event, f"{number} of {promised} again")
    elif not 1 <= number <= promised:
        yield call.suspicion(Class.FOREIGN, event, f"{number} of {promised}")
    elif seen and number < max(seen):
        yield call.suspicion(Class.ORDER, event, f"{number} after {max(seen)}")
    elif answered:
        yield call.suspicion(Class.ORDER, event, f"{number} after the response")


def _response(call: _Call, event: Observation, *, answered: bool) -> Iterator[Suspicion]:
    first = call.first
    if answered:
        yield call.suspicion(Class.DUPLICATE, event, "a second response")
    elif event.kind == Kind.ERROR:
        yield call.suspicion(Class.ERROR, event, f"{event.code}: {event.note}")
    if event.request != first.request:
        yield call.suspicion(Class.FOREIGN, event, f"the response to {first.request} carries the id {event.request}")
    if event.kind == Kind.RESULT and event.number != first.number:
        yield call.suspicion(Class.FOREIGN, event, f"the result names {event.number}, not {first.number}")


def _outcome(call: _Call, seen: set[int], *, complete: bool) -> Iterator[Suspicion]:
    done = call.done
    if done is None:
        if complete:
            yield call.suspicion(Class.HANG, call.last, "the call had no outcome when the run ended")
        return
    match Outcome(done.kind):
        case Outcome.GAVE_UP:
            yield call.suspicion(Class.HANG, done, f"no response in {done.at - call.first.at:.1f} s")
        case Outcome.NO_CURSOR:
            yield call.suspicion(Class.NO_CURSOR, done, f"after {len(call.events)} events")
        case Outcome.ABANDONED if not (call.refused or call.broken):
            yield call.suspicion(Class.ABANDONED, done, done.note)
        case Outcome.UNANSWERED:
            yield call.suspicion(Class.UNANSWERED, done, done.note)
        case Outcome.RESULT if missing := sorted(set(range(1, call.first.number + 1)) - seen):
            yield call.suspicion(Class.LOST, done, f"{missing} of {call.first.number}, before the result")
        case Outcome.ERROR if holes := sorted(set(range(1, max(seen, default=0))) - seen):
            yield call.suspicion(Class.LOST, done, f"{holes} of {call.first.number}, before the error")
        case _:
            pass


def _served(history: Sequence[Observation]) -> Mapping[str, list[Observation]]:
    """Group by session when which worker began to serve a request of it."""
    served: defaultdict[str, list[Observation]] = defaultdict(list)
    for one in history:
        if one.what in {What.OPENED, What.BEGAN}:
            served[one.session].append(one)
    return served


def _refusals(
    observations: Sequence[Observation],
    opened: Observation | None,
    served: Sequence[Observation],
    timeline: Timeline,
) -> Iterator[Suspicion]:
    """Judge the requests that were refused; a call that gave up was judged by its outcome."""
    began = observations[0].at
    for one in observations:
        if one.what is not What.REFUSED or (one.kind == "unanswered" and one.operation == Operation.POST):
            continue
        of_session = one.code == 404 and opened is not None
        kind = Class.UNANSWERED if one.kind == "unanswered" else Class.NOT_FOUND if one.code == 404 else Class.REFUSED
        yield Suspicion(
            kind,
            timeline.earliest(opened.at) if of_session and opened is not None else began,
            one.at,
            f"{one.operation} at worker {one.worker}: {one.code or one.kind} {one.note}".rstrip(),
            client=one.client,
            session=one.session,
            stream=one.stream,
            runner=opened.worker if of_session and opened is not None else -1,
            peer=one.worker,
            operation=one.operation,
            code=one.code,
            holders=tuple({each.worker: each.at for each in served if each.at < one.at}.items()) if of_session else (),
        )


def _standalone(
    observations: Sequence[Observation], published: Sequence[_Call], timeline: Timeline
) -> Iterator[Suspicion]:
    """Judge a standalone stream: all that was published, once, in the order of each worker that published it."""
    listening = _Call(observations, timeline)
    calls = {call.first.published: call for call in published}
    seen: set[int] = set()
    highest: dict[tuple[int, int], int] = {}
    for event in listening.events:
        if not event.id:
            yield listening.suspicion(Class.NO_ID, event, _message(event))
        if event.kind == Kind.PRIMING:
            continue
        call = calls.get(event.number)
        if event.kind != Kind.NOTIFICATION or call is None:
            yield listening.suspicion(Class.FOREIGN, event, event.note or _message(event))
            continue
        # A worker that was restarted is another writer.
        writer = (call.runner, timeline.incarnation(call.runner, call.since))
        if event.number in seen:
            yield listening.suspicion(Class.DUPLICATE, event, f"{event.number} again")
        elif event.number < highest.get(writer, 0):
            yield listening.suspicion(Class.ORDER, event, f"{event.number} after {highest[writer]}")
        seen.add(event.number)
        highest[writer] = max(event.number, highest.get(writer, 0))
    for one in listening.broken:
        yield listening.suspicion(Class.BROKEN, one, f"connection to worker {one.worker}: {one.note}")
    yield from _passed_on(listening, {Outcome.STOPPED})
    yield from _unreceived(listening, [call for number, call in calls.items() if number not in seen], observations)


def _unreceived(listening: _Call, calls: Sequence[_Call], observations: Sequence[Observation]) -> Iterator[Suspicion]:
    """Report published messages that never arrived, when the client listened to the end."""
    done = listening.done
    if done is None or done.kind != Outcome.STOPPED:
        return
    since = _expected_since(observations)
    for call in calls:
        if call.done is None or call.done.kind != Outcome.RESULT or call.first.at < since:
            continue
        # The loss concerns the worker that published, from then on.
        detail = f"{call.first.published}, published at {call.done.at:.2f} on worker {call.runner}"
        yield replace(listening.suspicion(Class.LOST, done, detail), since=call.since, runner=call.runner)


def _expected_since(observations: Sequence[Observation]) -> float:
    """From when on messages are owed: a client that reconnects without a cursor gives up those before."""
    without = [one.at for one in observations if one.what is What.BEGAN and not one.id]
    return without[-1] if len(without) > 1 else 0.0


def _reused_ids(history: Sequence[Observation]) -> Iterator[Suspicion]:
    """Find ids that name two messages of a session."""
    cursors = {
        (one.client, one.session, one.stream, one.connection): one.id for one in history if one.what is What.BEGAN
    }
    named: dict[tuple[str, str], tuple[object, ...]] = {}
    for one in history:
        if one.what is not What.EVENT or not one.id:
            continue
        place = (one.client, one.session, one.stream, one.connection)
        if one.kind == Kind.PRIMING and one.id == cursors.get(place):
            continue  # A resume begins by repeating the cursor.
        message = (one.client, one.stream, one.kind, one.number, one.code, one.note)
        before = named.setdefault((one.session, one.id), message)
        if before != message:
            yield Suspicion(
                Class.ID_REUSED,
                one.at,
                one.at,
                f"{one.id} is {before[1:4]}, and {message[1:4]}",
                client=one.client,
                session=one.session,
                stream=one.stream,
            )


def _message(event: Observation) -> str:
    if event.kind == Kind.NOTIFICATION:
        return f"notification {event.number}"
    return event.kind
