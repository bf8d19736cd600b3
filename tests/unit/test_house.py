"""The house stands: imports go down only, the gateway stays lean, every code is explained and used."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

from appliance.errors import ApplianceError, FileError, catalogue

ROOT = Path(__file__).parents[2]
PACKAGE = ROOT / "appliance"
# floors from the top down; rooms in one set stand side by side and do not import each other unless listed in BESIDE
FLOORS = [
    {"cli"},
    {"operations"},
    {"gateway", "training", "intake", "bundle"},
    {"settings"},
    {"routers", "registry", "vendoring"},
    {"trust"},
    {"artifact", "breaker"},
    {"documents", "files", "notify"},
    {"errors"},
]
BESIDE = {("files", "documents")}


def room_of(module: str) -> str | None:
    parts = module.split(".")
    return parts[1] if parts[0] == "appliance" and len(parts) > 1 else None


def imports(path: Path) -> set[str]:
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found.add(node.module)
            found |= {f"{node.module}.{alias.name}" for alias in node.names if node.module == "appliance"}
    return found


def test_imports_go_down_the_house_only():
    floor = {room: level for level, rooms in enumerate(FLOORS) for room in rooms}
    climbing = []
    for path in PACKAGE.rglob("*.py"):
        here = path.relative_to(PACKAGE).parts[0].removesuffix(".py")
        if here == "__init__":
            continue
        assert here in floor, f"{path} stands on no floor"
        for module in imports(path):
            there = room_of(module)
            if there is None or there == here or there.startswith("__"):
                continue
            if floor.get(there, -1) < floor[here] or (floor[there] == floor[here] and (here, there) not in BESIDE):
                climbing.append(f"{path.relative_to(ROOT)} imports {module}")
    assert not climbing, "\n".join(climbing)


def test_modules_stay_small():
    large = {str(p.relative_to(ROOT)): n for p in PACKAGE.rglob("*.py") if (n := len(p.read_text().splitlines())) > 400}
    assert not large


HEAVY = ("torch", "sentence_transformers", "sklearn", "appliance.training", "appliance.intake", "appliance.bundle")


def test_the_gateway_names_nothing_heavy():
    modules = {module for path in (PACKAGE / "gateway").rglob("*.py") for module in imports(path)}
    assert not {m for m in modules for heavy in HEAVY if m == heavy or m.startswith(heavy + ".")}


def test_a_command_starts_without_heavy_libraries():
    code = (
        "import sys\nfrom appliance.cli.main import app\n"
        "print([m for m in ('torch','sklearn','onnxruntime','litellm','minio','sigstore','numpy') if m in sys.modules])"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout.strip() == "[]"


def used_codes() -> Counter[str]:
    """Codes named as string constants in the package's own source."""
    used: Counter[str] = Counter()
    prefixes = {code.split("_")[0] for code in catalogue()}
    for path in [*PACKAGE.rglob("*.py"), *(ROOT / "bundle").rglob("*.py")]:
        for node in ast.walk(ast.parse(path.read_text())):
            if (
                isinstance(node, ast.Constant)
                and isinstance(node.value, str)
                and re.fullmatch(r"[A-Z0-9]+(_[A-Z0-9]+)+", node.value)
            ) and node.value.split("_")[0] in prefixes:
                used[node.value] += 1
    return used


def test_every_code_of_the_catalogue_is_raised_somewhere():
    assert not set(catalogue()) - set(used_codes())


def test_every_raised_code_stands_in_the_catalogue():
    raised = set()
    for path in PACKAGE.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Call) and getattr(node.func, "id", "").endswith("Error") and node.args:
                first = node.args[0]
                if (
                    isinstance(first, ast.Constant)
                    and isinstance(first.value, str)
                    and re.fullmatch(r"[A-Z]+(_[A-Z0-9]+)+", first.value)
                ):
                    raised.add(first.value)
    assert raised
    assert not raised - set(catalogue())


def test_every_code_has_a_meaning_and_a_remedy_that_can_be_typed_or_done():
    for entry in catalogue().values():
        assert entry.code.startswith(entry.area.upper() + "_"), entry.code
        assert len(entry.meaning) > 20, entry.code
        assert len(entry.remedy) > 15, entry.code


def test_every_code_is_asserted_by_a_test():
    text = "\n".join(p.read_text() for p in (ROOT / "tests").rglob("*.py"))
    untested = {code for code in catalogue() if code not in text}
    assert not untested


def test_a_code_that_nobody_explains_cannot_be_raised():
    with pytest.raises(LookupError):
        ApplianceError("FILE_INVENTED", "nothing")
    with pytest.raises(LookupError):
        FileError("DOCUMENT_MALFORMED", "another area's code")
    assert (
        FileError("FILE_MISSING", "gone", path="x").as_dict()["error"]["remedy"] == catalogue()["FILE_MISSING"].remedy
    )


def test_nothing_committed_names_a_machine_or_a_registry_host():
    words = re.compile(
        r"pypi\.org|pythonhosted|deb\.debian\.org|registry\.npmjs|file:///opt|\.pyenv|(?<![\w/.-])/work/"
    )
    command = ["git", "-c", "safe.directory=*", "ls-files", "-z"]  # whoever owns the checkout
    listed = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout
    naming = []
    for name in listed.split("\0"):
        path = ROOT / name
        if name and path.is_file() and path != Path(__file__) and path.stat().st_size < 4_000_000:
            try:
                text = path.read_text()
            except UnicodeDecodeError:
                continue
            if words.search(text):
                naming.append(name)
    assert not naming
