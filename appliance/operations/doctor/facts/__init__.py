"""Gathering: each module looks at one part of the host and returns facts, or the refusal that it met."""
