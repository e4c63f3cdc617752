"""Compares acknowledged ids with the events in Redis."""

from collections import Counter
from dataclasses import dataclass, field


@dataclass
class Acknowledgements:
    """The events handed to a store, by session and number, and the store's answers.

    Numbers of a session rise in the order in which they are handed over.
    """

    accepted: dict[str, list[int]] = field(default_factory=dict)
    """The numbers handed to the store, by session."""
    acknowledged: list[tuple[str, str, int]] = field(default_factory=list)
    """Session, id and number, one for each acknowledgement."""
    lost: int = 0
    """Events that the store has reported as lost."""
    committed: int | None = None
    """Events that the store has reported as stored; None when it does not report them."""

    def accept(self, session: str, number: int) -> None:
        """An event is handed to the store."""
        self.accepted.setdefault(session, []).append(number)

    def acknowledge(self, session: str, event_id: str, number: int) -> None:
        """The store has acknowledged an event under an id."""
        self.acknowledged.append((session, event_id, number))

    def problems(self, stored: dict[str, list[tuple[str, int]]]) -> list[str]:
        """Every difference, as text; [] when each acknowledged id names its own event, once and in order.

        Args:
            stored: By session, the ids and numbers that Redis holds, in the order of the stream.
        """
        found = []
        named = {(session, event_id): number for session, events in stored.items() for event_id, number in events}
        uses = Counter((session, event_id) for session, event_id, _ in self.acknowledged)
        found += [f"{session}: id {one} acknowledged {n} times" for (session, one), n in uses.items() if n > 1]
        found += [
            f"{session}: {event_id} was acknowledged for {number}, and names {named.get((session, event_id))}"
            for session, event_id, number in self.acknowledged
            if named.get((session, event_id)) != number
        ]
        missing = 0
        for session, accepted in self.accepted.items():
            numbers = [number for _, number in stored[session]]
            if numbers != sorted(set(numbers)):
                found.append(f"{session}: out of order or stored twice: {numbers}")
            if invented := set(numbers) - set(accepted):
                found.append(f"{session}: stored, but never accepted: {sorted(invented)}")
            missing += len(set(accepted) - set(numbers))
        if missing != self.lost:
            found.append(f"{missing} events missing, {self.lost} reported lost: {stored}")
        if self.committed not in {None, total := sum(map(len, stored.values()))}:
            found.append(f"{self.committed} events reported as stored, {total} are")
        return found
