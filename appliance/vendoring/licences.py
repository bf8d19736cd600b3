"""What a distribution says of its licence, in the most precise words it has."""

from __future__ import annotations

import re
from collections.abc import Iterable
from email.message import Message

from pydantic import BaseModel, ConfigDict

# the older free texts that mean one licence and no other; "BSD" or "Apache Software License" do not
_SPDX = {
    "apache 2": "Apache-2.0", "apache 2.0": "Apache-2.0", "apache license 2.0": "Apache-2.0",
    "apache license, version 2.0": "Apache-2.0", "apache-2": "Apache-2.0",
    "mit license": "MIT", "the mit license (mit)": "MIT", "the mit license": "MIT",
    "isc license": "ISC", "isc license (iscl)": "ISC",
    "3-clause bsd license": "BSD-3-Clause", "bsd 3-clause license": "BSD-3-Clause", "bsd 3-clause": "BSD-3-Clause",
    "bsd 2-clause license": "BSD-2-Clause", "mozilla public license 2.0 (mpl 2.0)": "MPL-2.0",
    "the unlicense (unlicense)": "Unlicense",
}  # fmt: skip


class Licence(BaseModel):
    """What a distribution says of its licence.

    Attributes:
        expression: SPDX expression (PEP 639), or None.
        text: the older free-text field's first line, or None.
        classifiers: the trove classifiers under `License`.
        files: paths of licence files in the wheel.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    expression: str | None
    text: str | None
    classifiers: tuple[str, ...]
    files: tuple[str, ...]

    @property
    def names(self) -> tuple[str, ...]:
        """The licence, as an SPDX identifier where its words mean one and no other; empty where it says nothing."""
        if self.expression:
            return (self.expression,)
        text = self.text or ""
        leaves = {leaf.rpartition(" :: ")[2] for leaf in self.classifiers} - {"OSI Approved"}
        if leaves and text.lower() not in _SPDX:
            return tuple(sorted(_SPDX.get(leaf.lower(), leaf) for leaf in leaves))
        return (_SPDX.get(text.lower(), text),) if text and not text.lower().startswith("copyright") else ()


def read_licence(metadata: Message, members: Iterable[str], *, info: str) -> Licence:
    """Collect what METADATA and the `.dist-info` folder say."""
    expression = metadata.get("License-Expression")
    text = str(metadata.get("License", "")).strip().splitlines()
    classifiers = (str(classifier) for classifier in metadata.get_all("Classifier", []))
    return Licence(
        expression=None if expression is None else str(expression).strip()[:500],
        text=text[0][:200] if text else None,
        classifiers=tuple(classifier for classifier in classifiers if classifier.startswith("License ::")),
        files=tuple(sorted(path for path in members if path.startswith(f"{info}/") and _is_licence(path))),
    )


def _is_licence(path: str) -> bool:
    return re.search(r"licen[cs]e|copying|notice", path.lower().partition("/")[2]) is not None
