"""Where links lead: the dashboards' uids, and the sections of the runbook, which have the names of the alerts."""

from dashboards.panels import Link

OVERVIEW = "eventscope-overview"
RESUME = "eventscope-resume"
REDIS = "eventscope-redis"
RUNBOOK = "eventscope-runbook"

SECTIONS = (
    "EventscopeResumesFailing",
    "EventscopeResumesFailingSlowly",
    "EventscopeOwedEventsUndelivered",
    "EventscopeStoreDegraded",
    "EventscopeStoreFlapping",
    "EventscopeStoreErrors",
    "EventscopeEventsLost",
    "EventscopeBacklogGrowing",
    "EventscopeTTLHeadroomLow",
    "EventscopeTTLMissing",
    "EventscopeKeysWithoutTTL",
    "EventscopeRequestsOrphaned",
    "EventscopeReplaySlow",
    "EventscopeFollowersGrowing",
    "EventscopeRedisEvicting",
    "EventscopeRedisMemoryNearLimit",
    "EventscopeMetricsAbsent",
    "EventscopeTelemetryFailing",
    "EventscopeRedisUnsampled",
)
"""An alert each. The place of a section is the id of its panel, so what is new goes last."""


def section(name: str) -> int:
    """The panel of a section of the runbook.

    Raises:
        ValueError: There is none.
    """
    return SECTIONS.index(name) + 1


def runbook(name: str) -> Link:
    """To a section of the runbook."""
    return Link(f"Runbook: {name}", RUNBOOK, section(name))


def to(title: str, uid: str, panel: int | None = None) -> Link:
    """To a dashboard, or to one panel of it."""
    return Link(title, uid, panel)
