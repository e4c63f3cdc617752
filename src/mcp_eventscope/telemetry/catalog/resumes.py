"""Catalog: latency of resumes, and how close they come to the TTL. `store` has outcomes and durations of replays."""

from mcp_eventscope.telemetry.declarations import STORE, LogEvent, Metric, MetricType

SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)
# The range near 1 matters; beyond 1 the event itself has expired.
RATIOS = (0.01, 0.05, 0.1, 0.25, 0.5, 0.75, 0.9, 0.95, 1.0)
NEAR_TTL = 0.9
"""The share of the TTL from which a resume is logged as late. It is a bucket bound of the histogram."""

REPLAY_TIME_TO_FIRST_EVENT = Metric(
    "eventscope_replay_time_to_first_event_seconds",
    MetricType.HISTOGRAM,
    "Latency from the start of a replay to the delivery of its first event.",
    (STORE,),
    SECONDS,
)
REPLAY_SEND_DURATION = Metric(
    "eventscope_replay_send_duration_seconds",
    MetricType.HISTOGRAM,
    "Time that a replay spent sending to the client, if it sent anything. The rest of "
    "eventscope_replay_duration_seconds is spent in the store.",
    (STORE,),
    SECONDS,
)
RESUME_TTL_RATIO = Metric(
    "eventscope_resume_ttl_ratio",
    MetricType.HISTOGRAM,
    "Age of the last event that a resuming client had received, divided by the TTL. Near 1, events are about to be "
    "lost.",
    (STORE,),
    RATIOS,
)

METRICS = (REPLAY_TIME_TO_FIRST_EVENT, REPLAY_SEND_DURATION, RESUME_TTL_RATIO)

RESUME_LATE = LogEvent(
    "event_store.resume_late",
    "warning",
    "A client resumed when its last event was about to expire. Nothing is lost yet.",
    ("store", "session_hash", "stream_id", "age_seconds", "ttl_seconds", "fix", "suppressed"),
)

LOG_EVENTS = (RESUME_LATE,)
