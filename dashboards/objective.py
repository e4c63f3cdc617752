"""The service level objective and the limits, once: dashboards and rules share them."""

OBJECTIVE = 0.99
"""The share of resumes that should deliver all events due."""
BUDGET = 1 - OBJECTIVE
LEAST_RESUMES = 20
"""Ratios of fewer resumes raise no alert: one laptop that slept overnight is no emergency."""
LEAST_FAILED = 5
"""Failed resumes from which their ratio raises an alert: of 20 resumes one laptop is 5 %, five times the budget."""
HEADROOM = 0.1
"""The share of the TTL that should be left when clients resume: 1 minus a bucket bound."""
LATE = 0.01
"""The share of clients that may resume with less headroom."""
STREAMS = 4
"""Followed streams per session, on average, from which an alert fires."""
REPLAY_SECONDS = 2.5
"""The p99 latency of a resume from which an alert fires."""
COMMIT_SECONDS = 0.1
"""The p90 latency of writes from which an alert fires: below `store_timeout`, from which a reply counts as an outage.

Not the p99, which is the slowest of a few dozen writes: one pause of a worker or of Redis would fire it.
"""
LAG_SECONDS = 2.5
"""The p99 lag of followers from which an alert fires."""
OPERATIONS_FAILED = 0.05
"""The share of operations with an error of the server from which an alert fires."""
BACKLOG = 1000
"""Pending events from which a growing backlog fires an alert."""
MEMORY = 0.9
"""The share of maxmemory from which an alert fires."""
UNCOLLECTED = 0.05
"""The share of results of tasks that no client collects from which an alert fires."""
LEAST_UNCOLLECTED = 5
"""Uncollected results from which that alert fires."""
ANSWERS_REFUSED = ("unknown_key", "audience", "unavailable", "not_running", "in_progress")
"""Reasons to refuse an answer that operators can remove. Clients cause the others."""
