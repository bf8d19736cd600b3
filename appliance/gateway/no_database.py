"""Stands where LiteLLM looks for the exceptions of its database engine, which a sealed room does not have.

LiteLLM asks of every error that it handles whether it came from the database, and imports `prisma` to ask. Without the
package the question itself fails: the client gets a bare "Internal Server Error", the log an import error in place of
the true one. Here are the classes it compares with; nothing ever raises one, so that each comparison says no.
"""

from __future__ import annotations

import importlib.util
import sys
from types import ModuleType
from typing import Any


class PrismaError(Exception):
    """The base of what is never raised."""


class _Errors(ModuleType):
    """Has every exception that is asked for by name."""

    PrismaError = PrismaError

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_") or not name.endswith("Error"):
            raise AttributeError(name)
        made = type(name, (PrismaError,), {"__module__": self.__name__})
        setattr(self, name, made)
        return made


def stand_in() -> None:
    """Answer `import prisma` with modules of exceptions, unless the package is there. Whoever wants more is refused."""
    if "prisma" in sys.modules or importlib.util.find_spec("prisma") is not None:
        return
    package, engine = ModuleType("prisma"), ModuleType("prisma.engine")
    errors, engine_errors = _Errors("prisma.errors"), _Errors("prisma.engine.errors")
    for module in (package, engine):
        module.__path__ = []  # a package without files
    package.errors, package.engine, engine.errors = errors, engine, engine_errors  # type: ignore[attr-defined]
    sys.modules.update({module.__name__: module for module in (package, engine, errors, engine_errors)})
