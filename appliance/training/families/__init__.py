"""Fitting: one module a routing family; each turns examples into a `routers` strategy."""
