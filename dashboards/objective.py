"""The objective of the product, once: dashboards and rules mean the same by it."""

OBJECTIVE = 0.99
"""The share of resumes that are to deliver all that was owed."""
BUDGET = 1 - OBJECTIVE
LEAST_RESUMES = 20
"""Of fewer resumes no share is taken: one laptop that slept for a night would be an emergency."""
HEADROOM = 0.1
"""The share of the TTL that is to be left when clients come back."""
REPLAY_SECONDS = 2.5
"""What 99 of 100 replays should take at most."""
