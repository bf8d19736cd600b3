"""What a release carries for people: runbooks, units, dashboards, manifests, recipes and the manual.

They lie in the payload under the names that the runbooks look for beside themselves; what refers to them after an
installation says `PREFIX/current/payload/scripts/...`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path

import appliance
from appliance.bundle.inputs import Payload
from appliance.errors import BundleError
from appliance.files import read_regular, read_tree

MAX_FILES, MAX_BYTES = 256, 16 * 1024 * 1024
# place in the payload -> folder of the source tree, carried whole
FOLDERS = {
    "systemd": "bundle/systemd",
    "monitoring": "bundle/monitoring",
    "kubernetes": "bundle/kubernetes",
    "container": "bundle/container",
    "docs": "docs",
}
LIBRARY = "lib/runbook.sh"  # what every runbook sources; scripts for developers do not
SHELL = b"#!/bin/bash -p\n"  # what every runbook runs in, whatever the environment says of functions and BASH_ENV


def source_tree() -> Path | None:
    """The source tree that the running package lies in; None where it runs from an installation."""
    tree = Path(appliance.__file__).parents[1]
    return tree if (tree / "bundle" / "defaults").is_dir() else None


def parts(source: Path, manual: Mapping[str, bytes]) -> list[Payload]:
    """Every such file, in the order of its name.

    Args:
        source: the tree of the appliance's sources.
        manual: path in the payload (`man/...`, `completion/...`) -> content, as the commands themselves write it.

    Raises:
        BundleError: BUNDLE_INPUT where the tree lacks a part. FileError: a file cannot be read.
    """
    found = [Payload(path, data) for path, data in manual.items()]
    for place, folder in FOLDERS.items():
        tree = read_tree(_required(source / folder), max_files=MAX_FILES, max_bytes=MAX_BYTES)
        found += [Payload(f"{place}/{name}", data) for name, data in tree.items()]
    found += _runbooks(_required(source / "scripts"))
    for recipe in sorted(_required(source / "ca").glob("*.yaml")):  # never what else lies there: an authority, keys
        found.append(Payload(f"ca/{recipe.name}", read_regular(recipe, max_bytes=MAX_BYTES)))
    return sorted(found, key=lambda file: file.path)


def _runbooks(scripts: Path) -> Iterator[Payload]:
    yield Payload(f"scripts/{LIBRARY}", read_regular(scripts / LIBRARY, max_bytes=MAX_BYTES))
    for path in scripts.iterdir():
        if path.is_file() and not path.suffix:
            data = read_regular(path, max_bytes=MAX_BYTES)
            if LIBRARY.encode() in data and data.startswith(SHELL):
                yield Payload(f"scripts/{path.name}", data, executable=True)


def _required(folder: Path) -> Path:
    if not folder.is_dir():
        raise BundleError("BUNDLE_INPUT", f"the source tree has no {folder}", folder=str(folder))
    return folder
