"""A weighted mean of other strategies."""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Self

import numpy as np
from pydantic import BaseModel, ConfigDict, Field

from appliance.errors import RouterError
from appliance.routers.strategies import Floats, Prompts, Strategy, StrategyFiles, family, parameters


class Member(BaseModel):
    """One member: its strategy, its share, its own parameters."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    strategy: Annotated[str, Field(min_length=1, max_length=64)]
    weight: Annotated[float, Field(gt=0, allow_inf_nan=False)]
    parameters: dict[str, Any] = {}


class EnsembleParameters(BaseModel):
    """Parameters of `Ensemble`."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    members: Annotated[tuple[Member, ...], Field(min_length=1, max_length=16)]


class Ensemble(Strategy):
    """Weighted mean of the members' scores; all of them estimate the same thing, the expected score.

    Args:
        labels: models.
        members: strategies over the same labels, each with its weight.
    """

    name: ClassVar[str] = "ensemble"

    def __init__(self, labels: tuple[str, ...], members: list[tuple[float, Strategy]]) -> None:
        super().__init__(labels)
        self.members = members
        self._total = sum(weight for weight, _ in members)

    def scores(self, prompts: Prompts) -> Floats:
        """Shape (n, labels)."""
        total = np.zeros((len(prompts), len(self.labels)), np.float32)
        for weight, member in self.members:
            total += np.float32(weight / self._total) * member.scores(prompts)
        return total

    @classmethod
    def load(cls, files: StrategyFiles, labels: tuple[str, ...]) -> Self:
        """Build every member from the tensors below its number, e.g. `0.weights`."""
        described = parameters(EnsembleParameters, files, cls.name).members
        members: list[tuple[float, Strategy]] = []
        for number, member in enumerate(described):
            if member.strategy == cls.name:
                raise RouterError("ROUTER_PARAMETERS", "an ensemble within an ensemble is not accepted")
            prefix = f"{number}."
            own = {name.removeprefix(prefix): t for name, t in files.tensors.items() if name.startswith(prefix)}
            strategy = family(member.strategy).load(StrategyFiles(member.parameters, own), labels)
            members.append((member.weight, strategy))
        return cls(labels, members)

    def dump(self) -> StrategyFiles:
        """The members' files, tensors below their number."""
        dumped = [(weight, member.name, member.dump()) for weight, member in self.members]
        members = [{"strategy": n, "weight": w, "parameters": dict(f.parameters)} for w, n, f in dumped]
        tensors = {f"{i}.{name}": t for i, (_, _, f) in enumerate(dumped) for name, t in f.tensors.items()}
        return StrategyFiles({"members": members}, tensors)
