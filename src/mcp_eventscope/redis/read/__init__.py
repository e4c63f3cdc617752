"""The read path of sessions: replays and followers, from memory and from Redis."""
