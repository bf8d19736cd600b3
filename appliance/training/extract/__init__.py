"""From traces and spend logs to outcomes: read, redact, join, reward; streaming, resumable, counted."""
