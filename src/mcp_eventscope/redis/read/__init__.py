"""The read path of sessions: replays and followers of the lists in Redis, and of the events in memory."""
