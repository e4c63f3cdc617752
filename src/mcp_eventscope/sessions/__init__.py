"""Session management: the session manager, and each session's transport and view of the store."""
