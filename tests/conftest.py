"""What holds for every test: Hypothesis gives a commit the same verdict everywhere, however slow the machine."""

from __future__ import annotations

import os

from hypothesis import HealthCheck, settings
from hypothesis.internal.conjecture import providers
from hypothesis.internal.constants_ast import Constants

# The cases follow from the test alone (`derandomize`), not from the modules that happen to be imported when it runs:
# Hypothesis would draw the constants in them, and which those are depends on what the same worker ran before.
providers._get_local_constants = lambda constants=Constants(): constants  # type: ignore[assignment]  # noqa: B008
patient = {"deadline": None, "suppress_health_check": list(HealthCheck)}
settings.register_profile("same", derandomize=True, database=None, **patient)
settings.register_profile("search", **patient)  # other cases each time: HYPOTHESIS_PROFILE=search make test
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "same"))
