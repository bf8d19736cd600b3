"""The air-gapped LLM routing appliance."""

__version__ = "0.1.0"
