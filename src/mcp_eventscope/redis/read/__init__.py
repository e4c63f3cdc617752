"""The read path of sessions: replays and followers of the lists in Redis, and of what is in memory."""
