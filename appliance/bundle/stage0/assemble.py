"""Join the shared modules into the single file `stage0.py`.

Each module goes in as it is, less its imports of the others and of `__future__`. A reviewer who reads the modules has
read stage 0, but for the first lines: they start Python anew with its own library alone (`-I`), because the file comes
on the medium that it checks, and Python looks for modules beside a file first, for `__future__` as for any other.
"""

from __future__ import annotations

import ast
import json
from importlib import resources

from appliance.errors import catalogue

MODULES = (
    "refusal",
    "ustar",
    "manifest",
    "media",
    "region",
    "extract",
    "workspace",
    "openssl",
    "journal",
    "preflight",
    "environment",
    "preparing",
    "main",
)

_TOP = '''\
#!/usr/bin/env python3
"""Stage 0 of the air-gapped LLM routing appliance: check a release and install it, with Python 3.11 and openssl alone.

    python3 stage0.py MEDIA... --prefix DIR --trust anchor.json

Check this file's SHA-256 against the one that reached you by the second channel before you run it. It is joined from
the modules named below by `appliance bundle build`; a test of the project proves that it is nothing else.
"""

import posix  # this one and the next are part of the interpreter itself, and found in no folder
import sys

if __name__ == "__main__" and not sys.flags.isolated:
    # nothing that lies beside this file, or where PYTHONPATH points, may stand in for a module of Python's
    posix.execv(sys.executable, [sys.executable, "-I", __file__, *sys.argv[1:]])

REMEDIES = {remedies}
'''


def assemble() -> str:
    """The source of `stage0.py`.

    Raises:
        ValueError: two modules define the same name, or one imports something it must not.
    """
    sections: list[str] = []
    defined: dict[str, str] = {}
    for name in MODULES:
        source = module_source(name)
        for symbol in _top_level_names(source):
            if symbol in defined:
                raise ValueError(f"{symbol} is defined in {defined[symbol]} and in {name}")
            defined[symbol] = name
        sections.append(f"\n\n# ---- {name}.py ----\n\n{section(source)}")
    remedies = {
        code: entry.remedy for code, entry in sorted(catalogue().items()) if entry.area in ("bundle", "install")
    }
    text = _TOP.replace("{remedies}", json.dumps(remedies, indent=4, ensure_ascii=True))
    return text + "".join(sections) + '\n\nif __name__ == "__main__":\n    raise SystemExit(main())\n'


def module_source(name: str) -> str:
    """Source text of one shared module."""
    return resources.files("appliance.bundle.stage0").joinpath(f"{name}.py").read_text("utf-8")


def section(source: str) -> str:
    """A module as it stands in the single file: without the imports that only a package can have."""
    left_out: set[int] = set()
    renamed: dict[str, str] = {}
    for node in ast.parse(source).body:
        if isinstance(node, ast.ImportFrom) and (node.level or node.module == "__future__"):
            left_out.update(range(node.lineno, (node.end_lineno or node.lineno) + 1))
            renamed.update({alias.name: alias.name for alias in node.names if alias.asname})
    if renamed:
        raise ValueError(f"renaming imports cannot be joined: {sorted(renamed)}")
    lines = source.splitlines()
    return "\n".join(line for number, line in enumerate(lines, 1) if number not in left_out).strip() + "\n"


def _top_level_names(source: str) -> list[str]:
    names = []
    for node in ast.parse(source).body:
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            names.append(node.name)
        elif isinstance(node, ast.Assign):
            names += [target.id for target in node.targets if isinstance(target, ast.Name)]
        elif isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
            names.append(node.target.id)
    return names


if __name__ == "__main__":
    print(assemble(), end="")  # > bundle/stage0/stage0.py
