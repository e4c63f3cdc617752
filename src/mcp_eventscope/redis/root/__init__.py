"""The root store: Redis acknowledges events before `store_event` returns."""
