"""The guides' commands, typed as they stand there, on hosts, registries and desks made for it."""

import json
import re
import shlex
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from typer.testing import CliRunner

from appliance.cli.main import app
from tests.support import artifacts
from tests.support.bundle import small_payload, small_release
from tests.support.postgres import postgres_server
from tests.support.routing import prompts, router_files, zone
from tests.support.small_authority import SmallAuthority

pytestmark = [pytest.mark.slow, pytest.mark.server]

DOCS = Path(__file__).parents[3] / "docs"
COMMAND = Path(sys.executable).with_name("appliance")
# commands of the page that are not typed here, and where they are
ELSEWHERE = {
    "systemctl": "a service manager is not the test's to start: test_systemd.py runs the units in one of its own",
    "curl": "the gateway suites ask every way there is; a small release carries no LiteLLM",
    "appliance status": "needs the running gateway: test_doctor.py and the demo",
    "appliance validate": "needs LiteLLM in the release: test_acceptance.py, and by hand on the demo's release",
    "/opt/appliance/current/payload/scripts/install-units": "test_drill.py places units into an image",
}


def appliance(*words: object, expect: int = 0) -> dict:
    """Type a command with --json, in this process: starting Python anew for each takes longer than what it does."""
    done = CliRunner().invoke(app, [*map(str, words), "--json"])
    assert done.exit_code == expect, f"{done.output}\n{done.exception!r}"
    return json.loads(done.stdout)


def test_getting_started_from_media_to_a_valid_configuration(tmp_path, authority):
    """Every console line of the page, one shell, paths of the page replaced by those of the test."""
    release = small_release(tmp_path / "media", authority, payload=small_payload(note="guide", whole=True))
    shutil.copy(DOCS.parent / "bundle" / "stage0" / "stage0.py", tmp_path / "stage0.py")
    (tmp_path / "anchor.json").write_bytes(release.anchor)
    page = (DOCS / "getting-started.md").read_text().replace("\\\n", " ")
    lines = [line[2:] for block in re.findall(r"```console\n(.*?)```", page, re.DOTALL) for line in block.splitlines()
             if line.startswith("$ ")]  # fmt: skip
    typed = [line for line in lines if not line.startswith(tuple(ELSEWHERE))]
    assert len(typed) >= 7
    assert len(lines) - len(typed) == len(ELSEWHERE)  # a new line of the page is typed, or named above
    prefix = tmp_path / "opt" / "appliance"
    script = ["set -eux", f'appliance() {{ {shlex.quote(str(COMMAND))} "$@"; }}']
    for line in typed:
        if line.startswith("export PATH"):
            script.append(f"test -x {prefix}/current/env/bin/appliance")
            script.append(_configuration(prefix / "etc"))
            continue
        replaced = line.replace("/media/release", str(release.media)).replace("/opt/appliance", str(prefix))
        script.append(replaced.replace("python3.11", shlex.quote(sys.executable)))
    done = subprocess.run(
        ["bash", "-c", "\n".join(script)], cwd=tmp_path, capture_output=True, text=True, check=False, timeout=800
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "is valid" in done.stdout
    assert (prefix / "current").readlink().name.startswith("1.0.0-")


def _configuration(etc: Path) -> str:
    """You name your model servers in litellm.yaml, the page says."""
    models = {"model_list": [{"model_name": "chat", "litellm_params": {"model": "openai/small",
              "api_base": "http://127.0.0.1:9/v1", "api_key": "none"}, "model_info": {"id": "small"}}]}  # fmt: skip
    settings = {"schema_version": 1, "state_dir": "../state/gateway",
                "litellm": {"config": "litellm.yaml", "master_key_file": "secrets/master.key"}}  # fmt: skip
    return "\n".join(
        f"cat > {etc / name} <<'END'\n{yaml.safe_dump(content)}END"
        for name, content in (("appliance.yaml", settings), ("litellm.yaml", models))
    )


def test_the_import_officers_guide_from_the_desk_to_a_promotion_and_back(tmp_path, authority):
    here = zone(tmp_path / "zone", authority, labels={"a": "small", "b": "large"})
    made = artifacts.signed(router_files(labels=here.labels, encoder=here.encoder), authority.signer("producer"))
    handed_in = artifacts.write(made, tmp_path / "media")
    recorded = tmp_path / "recorded.jsonl"
    asked = [*prompts(30), *prompts(30, "hard")]
    recorded.write_text("".join(json.dumps({"query": text}) + "\n" for text in asked))
    (tmp_path / "registry").mkdir()
    place = ("--registry", tmp_path / "registry", "--trust", tmp_path / "zone" / "trust")
    desk = ("--trust", tmp_path / "zone" / "trust", "--border", tmp_path / "border")
    officer = ("--authority", authority.path)

    case = appliance(
        "artifact", "admit", handed_in, "--encoder", tmp_path / "zone" / "encoder", "--prompts", recorded, *desk
    )  # fmt: skip
    for number, identity in enumerate(("import-officer", "import-officer-2")):
        approved = appliance(
            "artifact", "approve", case["case"], "--identity", f"{identity}@appliance.internal", *place, *officer,
            "--border", tmp_path / "border",
        )  # fmt: skip
        assert bool(approved.get("published")) == bool(number), approved
    shown = appliance("artifact", "journal", "show", *desk)
    head = appliance("artifact", "journal", "verify", *desk)["head"]
    assert shown
    assert appliance("artifact", "journal", "verify", *desk, "--head", head)
    assert appliance("artifact", "journal", "verify", *desk, "--head", "1" * 64, expect=1)["error"]["code"]
    appliance("artifact", "promote", "default", "1.0.0", *place, *officer)
    assert appliance("artifact", "list", *place)["channels"]
    appliance("artifact", "revoke", "default", "1.0.0", *place, *officer)
    assert appliance("artifact", "show", "default", *place)["target"] is None


def test_the_receiver_of_the_data_scientists_guide_takes_spans_until_it_is_told_to_stop(tmp_path):
    authority = SmallAuthority()
    server, client = authority.issue("127.0.0.1"), authority.issue("collector", client=True)
    certificate, key, ca = server.write(tmp_path, "server")
    assert client
    command = [COMMAND, "train", "receive", "--out", tmp_path / "live.jsonl", "--host", "127.0.0.1", "--http-port", "0",
               "--grpc-port", "0", "--certificate", certificate, "--key", key, "--client-ca", ca]  # fmt: skip
    receiver = subprocess.Popen(list(map(str, command)), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    try:
        assert receiver.stdout is not None
        first = receiver.stdout.readline()
        assert "127.0.0.1" in first, first
    finally:
        receiver.send_signal(signal.SIGTERM)
    assert receiver.wait(200) == 0


def test_the_registrys_guide_makes_its_tables_and_tells_their_history(tmp_path):
    with postgres_server(SmallAuthority().issue("127.0.0.1")) as server:
        settings = server.settings(tmp_path).model_dump(mode="json", exclude_none=True)
        database = tmp_path / "database.yaml"
        database.write_text(yaml.safe_dump({"postgres": settings}))
        appliance("config", "migrate", "--database", database)
        history = appliance("config", "history", "--database", database)
    assert history is not None
