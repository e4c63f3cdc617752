"""The part of the catalog that tells whose fault a slow resume is, and how near a resume is to losing events."""

from mcp_eventscope.telemetry.declarations import STORE, LogEvent, Metric, MetricType

SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)
# What matters is how near it comes to 1; past 1 the event itself has expired.
RATIOS = (0.01, 0.05, 0.1, 0.25, 0.5, 0.75, 0.9, 0.95, 1.0)
NEAR_TTL = 0.9
"""Of the TTL: a client that stays away for longer is told of, for the next one may lose events. A bucket's bound."""

FIRST_EVENT = Metric(
    "eventscope_replay_first_event_seconds",
    MetricType.HISTOGRAM,
    "Seconds from the start of a replay until its first event was delivered.",
    (STORE,),
    SECONDS,
)
SEND = Metric(
    "eventscope_replay_send_seconds",
    MetricType.HISTOGRAM,
    "Seconds of one replay that were spent sending to the client, of those that sent anything. The rest of "
    "eventscope_replay_duration_seconds is the store's.",
    (STORE,),
    SECONDS,
)
TTL_RATIO = Metric(
    "eventscope_resume_ttl_ratio",
    MetricType.HISTOGRAM,
    "Age of the last event that a client had, as a part of the TTL: near 1, events are about to be lost.",
    (STORE,),
    RATIOS,
)

METRICS = (FIRST_EVENT, SEND, TTL_RATIO)

RESUME_LATE = LogEvent(
    "event_store.resume_late",
    "warning",
    "A client came back when its last event was about to expire. Nothing is lost yet.",
    ("store", "session", "stream_id", "age", "ttl", "fix", "suppressed"),
)

LOG_EVENTS = (RESUME_LATE,)
