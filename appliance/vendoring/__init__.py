"""The connected side's gate: what may enter a release, pinned by hash, looked into, listed."""
