"""The objective of the product, once: dashboards and rules mean the same by it."""

OBJECTIVE = 0.99
"""The share of resumes that are to deliver all that was owed."""
BUDGET = 1 - OBJECTIVE
LEAST_RESUMES = 20
"""Of fewer resumes no share is taken: one laptop that slept for a night would be an emergency."""
HEADROOM = 0.1
"""The share of the TTL that is to be left when clients come back: one less a bound of the histogram's."""
LATE = 0.01
"""The share of clients that may come back when less is left."""
STREAMS = 4
"""Followed streams of a session, on average, that are too many."""
REPLAY_SECONDS = 2.5
"""What 99 of 100 replays should take at most."""
