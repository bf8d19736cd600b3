"""The routing families: one module each, registered by name in `routers.strategies.FAMILIES`."""
