"""The import border: what a producer hands in becomes what the zone signs, or a refusal with its reason."""
