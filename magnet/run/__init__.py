"""A run on disk: logs, checkpoints, signals, the summary before it starts."""
