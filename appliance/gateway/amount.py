"""How much a body holds, counted before anything is made of it.

LiteLLM and its client look at every object of a body one by one, on the event loop, a tenth of a millisecond or more
each: a million empty messages are 32 MB, and kept every other request of the worker waiting for minutes. A text or a
picture of the same length costs nothing of the kind.
"""

from __future__ import annotations

MAX_CONTAINERS = 10_000  # objects and lists
MAX_VALUES = 1_000_000


def is_too_much(body: bytes) -> bool:
    """Whether JSON holds more objects and lists, or more values, than the longest honest request.

    Args:
        body: of any form; what is no JSON is refused by whoever parses it.
    """
    if body.count(b"{") + body.count(b"[") <= MAX_CONTAINERS and body.count(b",") < MAX_VALUES:
        return False
    import numpy as np

    # without escapes, what stands after an odd number of quotation marks is text
    characters = np.frombuffer(body.replace(b"\\\\", b"").replace(b'\\"', b""), np.uint8)
    structure = characters[np.cumsum(characters == ord('"'), dtype=np.uint8) % 2 == 0]
    containers = np.count_nonzero((structure == ord("{")) | (structure == ord("[")))
    return bool(containers > MAX_CONTAINERS or np.count_nonzero(structure == ord(",")) >= MAX_VALUES)
