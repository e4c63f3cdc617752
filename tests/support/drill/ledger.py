"""What the drill did to one deployment, recorded by the part that did it: the expected content of the dashboards."""

from collections import Counter
from dataclasses import dataclass, field


@dataclass
class Ledger:
    """Of one job."""

    resumes: Counter[str] = field(default_factory=Counter)
    """By outcome, without `error`: see `waited` and `rejected`."""
    waited: int = 0
    """Resumes that needed Redis while it was unreachable; each ended well, and is in `resumes`."""
    rejected: int = 0
    """Replays that Redis refused."""
    lost: Counter[str] = field(default_factory=Counter)
    """Events that will never be stored, by reason."""
    misses: Counter[str] = field(default_factory=Counter)
    stored: Counter[str] = field(default_factory=Counter)
    """Events by kind, but for the errors that answer orphaned requests: no tool sent those."""
    orphaned: int = 0
    begun: Counter[str] = field(default_factory=Counter)
    """Sessions by origin."""
    ended: Counter[str] = field(default_factory=Counter)
    """Sessions by reason."""
    serving: dict[str, set[str]] = field(default_factory=dict)
    """The sessions of each worker, by its address."""
    requests: int = 0
    """HTTP requests, all of one revision."""
    tasks: Counter[str] = field(default_factory=Counter)
    """Tasks by outcome, on workers that have not been killed with them."""
    tasks_orphaned: int = 0
    tasks_uncollected: int = 0
    answers: Counter[str] = field(default_factory=Counter)
    """First uses of answers by outcome."""
    repeated: int = 0
    """Repeated answers."""
    answers_refused: Counter[str] = field(default_factory=Counter)
    signals: Counter[str] = field(default_factory=Counter)
    """Signals to open streams, by path."""
    gaps: Counter[str] = field(default_factory=Counter)
    outages: list[float] = field(default_factory=list)
    """Seconds of each, as long as Redis did not run."""

    @property
    def failed(self) -> int:
        """Resumes that missed."""
        return self.misses.total()

    def served(self, worker: str, session: str, origin: str = "adopted") -> None:
        """A worker was asked for a session."""
        sessions = self.serving.setdefault(worker, set())
        if session not in sessions:
            sessions.add(session)
            self.begun[origin] += 1

    def crashed(self, worker: str) -> None:
        """A worker serves no sessions any more, and has informed no other worker."""
        self.serving.pop(worker, None)
