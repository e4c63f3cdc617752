"""Link targets: the uids of the dashboards, and the sections of the runbook, named after the alerts."""

from dashboards.panels import Json, Link

OVERVIEW = "eventscope-overview"
RESUME = "eventscope-resume"
REDIS = "eventscope-redis"
MODERN = "eventscope-modern"
RUNBOOK = "eventscope-runbook"

SECTIONS = (
    "EventscopeResumesFailing",
    "EventscopeResumesFailingSlowly",
    "EventscopeDueEventsUndelivered",
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
    "EventscopeRedisStatsStale",
    "EventscopeRequestsRefused",
    "EventscopeTasksOrphaned",
    "EventscopeTasksUncollected",
    "EventscopeChangesNotDelivered",
    "EventscopeAnswersRefused",
    "EventscopeStoreSlow",
    "EventscopeFollowLagHigh",
    "EventscopeOperationsFailing",
    "EventscopeVersionsDiffer",
)
"""One per alert. The position of a section is the id of its panel, so new sections go last."""


def section(name: str) -> int:
    """The panel of a section of the runbook.

    Raises:
        ValueError: The runbook has no such section.
    """
    if name not in SECTIONS:
        msg = f"links.SECTIONS must contain each section of the runbook, got no {name}; add it at the end"
        raise ValueError(msg)
    return SECTIONS.index(name) + 1


def runbook(name: str) -> Link:
    """A link to a section of the runbook."""
    return Link(f"Runbook: {name}", RUNBOOK, section(name))


def to(title: str, uid: str, panel: int | None = None) -> Link:
    """A link to a dashboard, or to one of its panels."""
    return Link(title, uid, panel)


CHOICE = "${__url_time_range}&${datasource:queryparam}&${job:queryparam}&${instance:queryparam}&${store:queryparam}"
"""The part of a link that keeps the time range and the variables."""


def per_row(title: str, uid: str, column: str) -> Json:
    """A link of a table that leads each row to the panel whose id is in a column."""
    url = f"/d/{uid}?{CHOICE}&viewPanel=${{__data.fields.{column}}}"
    return {"title": title, "url": url, "targetBlank": False}
