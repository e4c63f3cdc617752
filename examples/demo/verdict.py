"""Whether it worked: what the client saw and what the store counted have to agree."""

from collections import Counter
from collections.abc import Sequence

from examples.demo import figures as names
from examples.demo.figures import Figures
from examples.demo.record import Kind, Moment, after_cut, of


def faults(moments: Sequence[Moment], figures: Figures, steps: int) -> list[str]:
    """All that speaks against "every event came once, in order, over a stream that was cut and resumed".

    Args:
        moments: What the client saw.
        figures: What /metrics reported afterwards.
        steps: How many events were owed.

    Returns:
        One sentence for each fault; nothing when there is none.
    """
    return [*_of_client(moments, steps), *_of_cut(moments), *_of_store(moments, figures)]


def _of_client(moments: Sequence[Moment], steps: int) -> list[str]:
    found = []
    numbers = [moment.number for moment in of(Kind.EVENT, moments)]
    if missing := sorted(set(range(1, steps + 1)) - set(numbers)):
        found.append(f"events never came: {_listed(missing)}")
    if doubled := sorted(number for number, times in Counter(numbers).items() if times > 1):
        found.append(f"events came more than once: {_listed(doubled)}")
    if strange := sorted(set(numbers) - set(range(1, steps + 1))):
        found.append(f"events came that nobody sent: {_listed(strange)}")
    if numbers != sorted(numbers):
        found.append(f"events came out of order: {_listed(numbers)}")
    found += [f"the call failed: {moment.text}" for moment in of(Kind.FAILURE, moments)]
    results = of(Kind.RESULT, moments)
    if len(results) != 1:
        found.append("the result never came" if not results else f"the result came {len(results)} times")
    elif moments[-1] is not results[0]:
        found.append("the result came before the last event")
    return found


def _of_cut(moments: Sequence[Moment]) -> list[str]:
    if not any(moment.number for moment in of(Kind.CUT, moments)):
        return ["no connection was cut, so nothing was shown"]
    rest = after_cut(moments)
    if not of(Kind.EVENT, moments[: len(moments) - len(rest)]) or not of(Kind.EVENT, rest):
        return ["the cut was not in the middle of the events"]
    return [] if of(Kind.RETURN, rest) else ["the client did not come back after the cut"]


def _of_store(moments: Sequence[Moment], figures: Figures) -> list[str]:
    found = []
    if not figures.resumed:
        found.append("/metrics knows of no replay that delivered what was owed")
    owed = sum(moment.kind in {Kind.EVENT, Kind.RESULT} for moment in after_cut(moments))
    if figures.delivered != owed:
        found.append(f"{owed} events came after the cut, but /metrics counts {figures.delivered} on resumed streams")
    found += [
        f"/metrics reports {total:g} {what}"
        for name, what in (
            (names.MISSING_EVENTS, "events that were owed and gone"),
            (names.CORRUPT_EVENTS, "events that could not be read"),
            (names.ERRORS, "failed operations"),
        )
        if (total := figures.total(name))
    ]
    return found


def _listed(numbers: Sequence[int]) -> str:
    return ", ".join(map(str, numbers))
