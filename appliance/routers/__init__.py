"""Routing models as they serve: prompt text, encoder, strategies, weighted round-robin. No torch, no pickle."""
