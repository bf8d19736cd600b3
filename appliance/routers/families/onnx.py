"""A network of the site's own making or converted at the border: vector in, one score a model out."""

from __future__ import annotations

from typing import Annotated, ClassVar, Self

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field

from appliance.errors import RouterError
from appliance.routers.onnx_file import open_session
from appliance.routers.strategies import Floats, Prompts, Strategy, StrategyFiles, parameters


class OnnxParameters(BaseModel):
    """Parameters of `Onnx`: names of the network's input, float32 (n, d), and output, (n, labels)."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    input: Annotated[str, Field(min_length=1, max_length=256)] = "embedding"
    output: Annotated[str, Field(min_length=1, max_length=256)] = "scores"


class Onnx(Strategy):
    """Whatever an ONNX graph of plain tensor operators computes.

    Args:
        labels: models.
        network: the file's bytes, as a tensor of uint8.
        parameters: names of input and output.
    """

    name: ClassVar[str] = "onnx"

    def __init__(self, labels: tuple[str, ...], network: NDArray[np.uint8], parameters: OnnxParameters) -> None:
        super().__init__(labels)
        self.network, self.parameters = network, parameters
        self._session = open_session(network.tobytes(), what="network")
        inputs, outputs = (
            {node.name for node in nodes} for nodes in (self._session.get_inputs(), self._session.get_outputs())
        )
        if inputs != {parameters.input} or parameters.output not in outputs:
            raise RouterError(
                "ROUTER_NETWORK",
                f"the network does not take {parameters.input!r} alone and give {parameters.output!r}",
                inputs=sorted(inputs),
                outputs=sorted(outputs),
            )

    def scores(self, prompts: Prompts) -> Floats:
        """Shape (n, labels).

        Raises:
            RouterError: ROUTER_SCORES where the network fails on these vectors.
        """
        try:
            values = self._session.run([self.parameters.output], {self.parameters.input: prompts.embeddings})[0]
        except Exception as error:  # noqa: BLE001 (as above)
            raise RouterError("ROUTER_SCORES", f"the network failed: {str(error)[:200]}") from None
        return np.asarray(values, np.float32)

    @classmethod
    def load(cls, files: StrategyFiles, labels: tuple[str, ...]) -> Self:
        """Build it from the tensor `network` (uint8, the ONNX file) and its parameters."""
        network = files.tensor("network", dtype="uint8", shape=(None,))
        return cls(labels, network, parameters(OnnxParameters, files, cls.name))

    def dump(self) -> StrategyFiles:
        """Tensor `network`; parameters."""
        return StrategyFiles(self.parameters.model_dump(), {"network": self.network})
