"""The guides' commands, typed as they stand there, on hosts, registries and desks made for it."""

import base64
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import psycopg
import pytest
import yaml
from typer.testing import CliRunner

from appliance import artifact
from appliance.cli.main import app
from appliance.registry.postgres import parameters
from tests.support import artifacts
from tests.support.bundle import small_payload, small_release
from tests.support.gateway import deployment, gateway
from tests.support.guides import Guide, filled
from tests.support.postgres import postgres_server
from tests.support.routing import prompts, router_files, zone
from tests.support.small_authority import SmallAuthority
from tests.support.upstream import upstream

pytestmark = [pytest.mark.slow, pytest.mark.server]

DOCS = Path(__file__).parents[3] / "docs"
COMMAND = Path(sys.executable).with_name("appliance")
# commands of the page that are not typed here, and where they are
ELSEWHERE = {
    "systemctl": "a service manager is not the test's to start: test_systemd.py runs the units in one of its own",
    "curl": "below, beside a gateway: a small release carries no LiteLLM",
    "appliance status": "below, beside a gateway",
    "appliance validate": "test_acceptance.py types it",
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


def test_the_first_request_of_getting_started_and_what_the_status_says_of_it(tmp_path):
    guide = Guide("getting-started")
    with (
        upstream("small") as small,
        gateway(tmp_path / "gateway", [deployment("chat", small)]) as running,
    ):
        status = guide.type("appliance status", {"/opt/appliance/etc/appliance.yaml": running.config})
        assert status["ready"] is True
        page = guide.page.replace("\\\n", " ")
        line = next(each for each in page.splitlines() if each.startswith("$ curl")).removeprefix("$ ")
        there = {"zone-ca.pem": running.directory / "tls.crt", "https://gateway.zone.internal:8443": running.url}
        typed = ["bash", "-c", filled(line, there)]
        answer = subprocess.run(
            typed, env={**os.environ, "KEY": running.key}, capture_output=True, text=True, check=True, timeout=300
        )
    assert " 200 " in answer.stdout.splitlines()[0]
    assert "x-appliance-deployment: small" in answer.stdout.lower()
    assert len(small.requests) == 1


def test_the_import_officers_guide_from_the_desk_to_a_promotion_and_back(tmp_path, authority):
    """Two versions and an encoder come in, are approved by two, served, taken back and forbidden."""
    here = zone(tmp_path / "zone", authority, labels={"a": "small", "b": "large"})
    producer = authority.signer("producer")
    registry, border = tmp_path / "registry.yaml", tmp_path / "border"
    (tmp_path / "registry").mkdir()
    registry.write_text(yaml.safe_dump({"registry": {"home": "directory", "path": str(tmp_path / "registry")}}))
    asked = [*prompts(30), *prompts(30, "hard")]
    recorded = tmp_path / "recorded.jsonl"
    recorded.write_text("".join(json.dumps({"query": text}) + "\n" for text in asked))
    guide = Guide("import-officer", {"APPLIANCE_REGISTRY": str(registry), "APPLIANCE_TRUST": f"{here.directory}/trust"})
    places = {"registry.yaml": registry, "STATE": here.directory}
    officer = ("--authority", authority.path)
    desk = {"STATE": here.directory, "/srv/border": border}

    def examine(name: str, files: dict[str, bytes]) -> dict:
        handed_in = artifacts.write(artifacts.signed(files, producer), tmp_path / "media" / name)
        encoder = {"PREFIX/current/payload/encoder": here.directory / "encoder"}
        given = {"/media/handed-in/router": handed_in, "recorded-prompts.jsonl": recorded}
        return guide.type("appliance artifact admit", {**places, **desk, **encoder, **given})

    def admit(name: str, files: dict[str, bytes]) -> dict:
        examined = examine(name, files)
        for number, identity in enumerate(("import-officer@", "import-officer-2@")):
            approve = f"appliance artifact approve 8264ef77280f37ba --identity {identity}"
            said = {"8264ef77280f37ba": examined["case"], "zone.internal": "appliance.internal"}
            rest = ("--trust", here.directory / "trust", "--border", border, *officer)
            approved = guide.type(approve, {**said, "registry.yaml": registry}, *rest)
            assert bool(approved.get("published")) == bool(number), approved
        return examined

    promote = "appliance artifact promote default 1.4.0 --registry"
    first = router_files(labels=here.labels, encoder=here.encoder, version="1.3.2")
    admit("1.3.2", first)
    guide.type(promote, {**places, "1.4.0": "1.3.2"}, *officer)
    admit("1.4.0", router_files(labels=here.labels, encoder=here.encoder, version="1.4.0", swapped=True))
    guide.type(promote, places, *officer)
    show = ("artifact", "show", "default", "--registry", registry, "--trust", here.directory / "trust")
    assert appliance(*show)["target"]["version"] == "1.4.0"
    assert appliance("artifact", "list", *show[3:])["channels"]  # what the runbook of a key that got out looks at first
    guide.type("appliance artifact promote default 1.3.2", {}, *officer)
    assert appliance(*show)["target"]["version"] == "1.3.2"
    guide.type("appliance artifact promote default --renew", {}, *officer)
    guide.type("appliance artifact revoke default 1.4.0", {}, *officer)
    guide.type("appliance artifact promote default 1.3.2", {"1.3.2": "1.4.0"}, *officer, expect=1)

    unwanted = examine("1.6.0", router_files(labels=here.labels, encoder=here.encoder, version="1.6.0"))
    guide.type("appliance artifact decline", {"8264ef77280f37ba": unwanted["case"]}, "--border", border)
    digest = artifact.read(here.directory / "encoder").digest[:12]
    admit("encoder", here.encoder)
    out = tmp_path / "encoder-of-the-zone"
    guide.type("appliance artifact show", {"NAME": "tiny", "DIGEST12": digest, "FOLDER": out})
    assert artifact.read(out).digest[:12] == digest

    again = artifacts.write(first, tmp_path / "again")
    packed = {"DIR": again, "NEW": tmp_path / "new", "VERSION": "1.5.0"}
    guide.type("appliance artifact pack", packed)
    assert artifact.router_metadata(artifact.read(tmp_path / "new")).version == "1.5.0"
    assert guide.type("appliance artifact journal show", desk)
    head = appliance("artifact", "journal", "verify", "--border", border, "--trust", here.directory / "trust")["head"]
    checked = "appliance artifact journal verify --border /srv/border --trust STATE/trust"
    assert guide.type(f"{checked} --registry", {**desk, "registry.yaml": registry})["head"] == head
    verify = f"{checked} --head"
    assert guide.type(verify, {**desk, "HEAD_YOU_NOTED": head})["head"] == head
    refused = guide.type(verify, {**desk, "HEAD_YOU_NOTED": "1" * 64}, expect=1)
    assert "remedy" in guide.type("appliance explain", {"CODE": refused["error"]["code"]})
    guide.type("appliance ca revoke", {}, "--digest", "ab" * 32, *officer)
    guide.all_typed({"appliance sync": "with its options from the registry's page"})


def test_the_registrys_guide_a_sidecar_the_tables_and_their_history(tmp_path, authority):
    here = zone(tmp_path / "zone", authority, labels={"a": "small", "b": "large"})
    guide, registry, volume = Guide("registry"), tmp_path / "registry.yaml", tmp_path / "volume"
    (tmp_path / "registry").mkdir()
    volume.mkdir()
    registry.write_text(yaml.safe_dump({"registry": {"home": "directory", "path": str(tmp_path / "registry")}}))
    place = ("--registry", registry, "--trust", here.directory / "trust")
    officer = ("--authority", authority.path)
    row = {"id": "small", "model_group": "chat", "model": "openai/small", "api_base": "http://127.0.0.1:9/v1"}
    (tmp_path / "rows.yaml").write_text(yaml.safe_dump({"deployment": [row]}))
    guide.type("appliance config publish", {"FILE": tmp_path / "rows.yaml"}, *place, *officer)
    router = artifacts.signed(
        router_files(labels=here.labels, encoder=here.encoder), authority.signer("import-officer")
    )
    published = artifacts.write(router, tmp_path / "admitted")
    appliance("artifact", "publish", published, *place)
    appliance("artifact", "promote", "default", "1.0.0", *place, *officer)
    sync = {"registry.yaml": registry, "STATE": here.directory, "/srv/routers": volume}
    guide.type("appliance sync --registry", sync, "--once")
    assert (volume / "config" / "gateway.json").is_file()
    assert (volume / "routers" / "default" / "1.0.0" / "router.yaml").is_file()
    shown = guide.type("appliance artifact show", {"NAME": "default", "DIR": tmp_path / "apart"}, *place)
    assert shown["target"]["version"] == "1.0.0"
    assert len(list((tmp_path / "apart").iterdir())) == 2  # statement and bundle
    pin = next(line for line in guide.page.splitlines() if line.startswith("openssl x509"))
    pem, _, _ = SmallAuthority().issue("127.0.0.1").write(tmp_path, "server")
    made = subprocess.run(["bash", "-c", pin.replace("server.pem", str(pem))], capture_output=True, check=True)
    assert len(base64.b64decode(made.stdout, validate=False)) == 32
    with postgres_server(SmallAuthority().issue("127.0.0.1")) as server:
        settings = server.settings(tmp_path)
        database = tmp_path / "database.yaml"
        database.write_text(yaml.safe_dump({"postgres": settings.model_dump(mode="json", exclude_none=True)}))
        named = ("--database", database)
        guide.type("appliance config migrate", {"database.yaml": database})
        with psycopg.connect(**parameters(settings)) as connection:
            for note in ("'one'", "'two'"):
                connection.execute(f"SET LOCAL appliance.comment = {note}")
                connection.execute(
                    "INSERT INTO appliance.deployment (id, model_group, model, api_base) VALUES (%s, 'chat', "
                    "'openai/small', 'http://127.0.0.1:9/v1')",
                    (note.strip("'"),),
                )
                connection.commit()
        assert guide.type("appliance config check", {}, *named)["rows"]["deployment"] == ["one", "two"]
        revisions = guide.type("appliance config history", {}, *named)
        assert {"one", "two"} <= {each["comment"] for each in revisions}
        one = next(each["number"] for each in revisions if each["comment"] == "one")
        guide.type("appliance config return", {"N": one}, *named)
        assert guide.type("appliance config check", {}, *named)["rows"]["deployment"] == ["one"]
    guide.all_typed(
        {
            "appliance sync": "above, with its options",
            "appliance ca issue": "the key ceremony's tests",
            "appliance status --json": "test_doctor.py, beside a running gateway",
        }
    )
