"""An encoder's first vectors, inside the confined worker: a tokenizer or a network that never ends, ends there."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from appliance.artifact import encoder_metadata, from_files
from appliance.intake import trial
from appliance.routers.encoder import load_encoder
from appliance.routers.token_encoder import MAX_CHARACTERS_PER_TOKEN

LONGEST = 512 * MAX_CHARACTERS_PER_TOKEN * 2  # characters; what a gateway hands over of a long prompt


def warm_up() -> None:
    """Import both libraries and let them do what they do only once."""
    from tokenizers import Tokenizer, models, pre_tokenizers

    trial.warm_up()
    own = Tokenizer(models.WordLevel({"a": 0, "[UNK]": 1}, unk_token="[UNK]"))  # noqa: S106 (no password)
    own.pre_tokenizer = pre_tokenizers.Whitespace()
    Tokenizer.from_buffer(own.to_str().encode()).encode("a b")


def work(asked: Mapping[str, Any], parts: list[bytes]) -> tuple[dict[str, Any], dict[str, NDArray[Any]]]:
    """Load an encoder and embed the texts, and three that are as long as texts get.

    Raises:
        ArtifactError, RouterError: it is refused by its own loader.
    """
    artifact = from_files(dict(zip(asked["names"], parts, strict=True)))
    encoder = load_encoder(artifact, max_tokens=min(encoder_metadata(artifact).max_tokens, 512))
    start = time.perf_counter()
    vectors = encoder.encode(asked["texts"])
    took = (time.perf_counter() - start) * 1000 / max(1, len(asked["texts"]))
    for text in ("a" * LONGEST, "a b " * (LONGEST // 4), "\N{NO-BREAK SPACE}!" * (LONGEST // 2)):
        encoder.encode([text])
    return {"ms_a_text": took}, {"vectors": np.asarray(vectors, np.float32)}
