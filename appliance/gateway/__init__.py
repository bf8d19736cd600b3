"""The gateway: LiteLLM in this process, a routing decision that never costs a request, and a guard around both."""
