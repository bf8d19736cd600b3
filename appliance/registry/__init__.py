"""The registry: where routers lie, how they are found, and how a host keeps serving without it."""
