"""Deployment B: the configuration in PostgreSQL. Two gateways converge, bad rows stay out, one command returns."""

from __future__ import annotations

import json
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psycopg
import pytest
from typer.testing import CliRunner

from appliance.cli.config import app
from appliance.errors import RegistryError
from appliance.registry.live import Changes, LiveConfig, assemble, difference
from appliance.registry.live_database import ConfigDatabase
from appliance.registry.live_watch import ConfigWatcher
from appliance.registry.postgres import PostgresSettings, parameters
from tests.support.ports import free_port
from tests.support.postgres import PostgresServer, postgres_server
from tests.support.small_authority import SmallAuthority

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def server(tls_authority: SmallAuthority) -> Iterator[PostgresServer]:
    with postgres_server(tls_authority.issue("127.0.0.1")) as running:
        yield running


@pytest.fixture
def settings(server: PostgresServer, tmp_path: Path) -> PostgresSettings:
    """A database of its own for each test."""
    found = server.settings(tmp_path)
    with psycopg.connect(**parameters(found), autocommit=True) as connection:
        connection.execute("DROP SCHEMA IF EXISTS appliance CASCADE")
    return found


@pytest.fixture
def database(settings: PostgresSettings) -> ConfigDatabase:
    ready = ConfigDatabase(settings)
    ready.migrate()
    return ready


def execute(settings: PostgresSettings, *statements: str) -> None:
    """What an operator's SQL tool does: one transaction."""
    with psycopg.connect(**parameters(settings)) as connection:
        for statement in statements:
            connection.execute(statement)  # type: ignore[arg-type]


def deployment(identity: str, *, group: str = "chat", base: str = "https://127.0.0.1:1", weight: int = 1) -> str:
    return (
        "INSERT INTO deployment (id, model_group, model, api_base, key_reference, weight) VALUES"
        f" ('{identity}', '{group}', 'openai/{identity}', '{base}', 'os.environ/UPSTREAM_KEY', {weight})"
        " ON CONFLICT (id) DO UPDATE SET weight = EXCLUDED.weight, api_base = EXCLUDED.api_base"
    )


class Memory:
    """An applier that remembers."""

    def __init__(self) -> None:
        self.applied: list[Changes] = []

    def apply(self, changes: Changes, config: LiveConfig) -> LiveConfig:
        self.applied.append(changes)
        return config


@pytest.fixture
def watcher(database: ConfigDatabase, tmp_path: Path) -> Callable[..., ConfigWatcher]:
    def make(applier: Any = None, **more: Any) -> ConfigWatcher:
        return ConfigWatcher(database, applier or Memory(), kept=tmp_path / "kept.json", **more)

    return make


def test_migrating_twice_is_migrating_once(database: ConfigDatabase) -> None:
    assert database.migrate() == "0002"
    assert database.newest() == 0
    assert database.read(LiveConfig()).revision == 0


def test_tables_of_a_newer_appliance_are_left_alone(database: ConfigDatabase) -> None:
    execute(database.settings, "UPDATE alembic_version SET version_num = '9999'")
    with pytest.raises(RegistryError) as info:
        database.migrate()
    assert info.value.code == "REGISTRY_MIGRATION"


def test_a_transaction_is_one_revision_with_its_author(database: ConfigDatabase) -> None:
    execute(
        database.settings,
        "SELECT set_config('appliance.comment', 'two upstreams', true)",
        deployment("small"),
        deployment("large"),
    )
    [revision] = database.history()
    assert (revision.author, revision.comment) == ("appliance", "two upstreams")
    config = database.read(LiveConfig())
    assert set(config.rows["deployment"]) == {"small", "large"}
    small = config.rows["deployment"]["small"].litellm()
    assert small["litellm_params"]["api_key"] == "os.environ/UPSTREAM_KEY"


def test_only_the_difference_is_applied(database: ConfigDatabase, watcher: Callable[..., ConfigWatcher]) -> None:
    execute(database.settings, *(deployment(f"d{number}") for number in range(20)))
    applier = Memory()
    watching = watcher(applier)
    assert watching.refresh()
    assert not watching.refresh()
    execute(database.settings, deployment("d3", weight=5), "DELETE FROM deployment WHERE id = 'd4'")
    assert watching.refresh()
    changes = applier.applied[-1]
    assert [row.id for row in changes.upserts["deployment"]] == ["d3"]
    assert changes.deletes["deployment"] == ("d4",)


BAD_ROWS = {
    "a key instead of a reference": "UPDATE deployment SET key_reference = 'sk-live-secret' WHERE id = 'small'",
    "a secret among the parameters": """UPDATE deployment SET parameters = '{"api_key": "sk"}' WHERE id = 'small'""",
    "credentials in the address": "UPDATE deployment SET api_base = 'https://user:pw@host/' WHERE id = 'small'",
    "another scheme": "UPDATE deployment SET api_base = 'file:///etc/passwd' WHERE id = 'small'",
    "a weight out of range": "UPDATE deployment SET weight = -1 WHERE id = 'small'",
}


@pytest.mark.parametrize("name", BAD_ROWS)
def test_a_bad_row_is_refused_and_reported_and_what_runs_is_not_touched(
    database: ConfigDatabase, watcher: Callable[..., ConfigWatcher], name: str
) -> None:
    execute(database.settings, deployment("small"), deployment("large"))
    applier, said = Memory(), []
    watching = watcher(applier, report=said.append)
    watching.refresh()
    execute(database.settings, BAD_ROWS[name], deployment("large", weight=7))
    watching.refresh()
    assert [row.id for row in applier.applied[-1].upserts["deployment"]] == ["large"], "the good row goes on its way"
    assert applier.applied[-1].deletes["deployment"] == ()
    assert watching.running.rows["deployment"]["small"].weight == 1
    assert [problem.key for problem in watching.running.problems] == ["small"]
    assert "small" in said[-1]
    assert "sk-live-secret" not in said[-1], "a report never repeats a secret"


def test_a_group_that_names_no_router_keeps_its_running_form(
    database: ConfigDatabase, watcher: Callable[..., ConfigWatcher]
) -> None:
    execute(
        database.settings,
        "INSERT INTO router_source VALUES ('default', 's3://127.0.0.1:9000/registry/zone/', 'default')",
        "INSERT INTO model_group (name, strategy, router) VALUES ('chat', 'ml', 'default')",
        deployment("small"),
    )
    watching = watcher()
    watching.refresh()
    execute(database.settings, "UPDATE model_group SET router = 'nowhere'")
    watching.refresh()
    assert watching.running.rows["model_group"]["chat"].router == "default"
    assert watching.running.problems[0].table == "model_group"
    assert watching.running.problems[0].error.code == "REGISTRY_ROW_DANGLING"


def test_one_command_returns_to_an_earlier_revision(
    database: ConfigDatabase, watcher: Callable[..., ConfigWatcher], tmp_path: Path
) -> None:
    execute(database.settings, deployment("small"))
    good = database.newest()
    execute(database.settings, "DELETE FROM deployment", deployment("wrong"))
    watching = watcher()
    watching.refresh()
    found = database.settings.model_dump(mode="json", exclude_none=True)
    (tmp_path / "database.yaml").write_text(json.dumps({"postgres": found}))
    done = CliRunner().invoke(app, ["return", str(good), "--database", str(tmp_path / "database.yaml"), "--json"])
    assert done.exit_code == 0, done.output
    watching.refresh()
    assert list(watching.running.rows["deployment"]) == ["small"]
    assert database.history()[0].comment == f"return to revision {good}"
    with pytest.raises(RegistryError) as info:
        database.restore(999)
    assert info.value.code == "REGISTRY_REVISION"


@pytest.mark.parametrize(
    "value",
    ["""'{"seed": 1e5000}'""", """'{"temperature": 1e400}'""", """'{"seed": 123456789012345678901}'"""],
)
def test_a_number_without_bounds_is_refused_with_its_row_and_the_others_are_followed(
    database: ConfigDatabase, watcher: Callable[..., ConfigWatcher], value: str
) -> None:
    execute(database.settings, deployment("small"), deployment("large"))
    watching = watcher()
    watching.refresh()
    poison = f"UPDATE deployment SET parameters = {value} WHERE id = 'small'"
    execute(database.settings, poison, "UPDATE deployment SET weight = 7 WHERE id = 'large'")
    for each in (watching, watcher()):
        each.boot()
        assert [(one.key, one.error.code) for one in each.running.problems] == [("small", "REGISTRY_ROW")]
        assert {key: row.weight for key, row in each.running.rows["deployment"].items()} == {"small": 1, "large": 7}
        assert each.running.rows["deployment"]["small"].parameters == {}


def test_a_value_nested_beyond_reading_is_reported_and_what_runs_goes_on(
    database: ConfigDatabase, watcher: Callable[..., ConfigWatcher]
) -> None:
    execute(database.settings, deployment("small"))
    watching = watcher()
    watching.refresh()
    deep = "('{\"stop\": ' || repeat('[', 3000) || repeat(']', 3000) || '}')::jsonb"
    execute(database.settings, f"UPDATE deployment SET parameters = {deep}")
    for each in (watching, watcher()):
        assert list(each.boot().rows["deployment"]) == ["small"]
        assert each.problem is not None
        assert each.problem.code == "DOCUMENT_TOO_LARGE"


def test_a_return_names_its_own_revision_and_none_that_cannot_be(database: ConfigDatabase) -> None:
    execute(database.settings, deployment("small"))
    first = database.newest()
    newest, database.newest = database.newest, lambda: 999  # type: ignore[method-assign]  # another editor was quick
    number = database.restore(first)
    assert number == newest()
    for beyond in (2**63, 2**70):
        with pytest.raises(RegistryError) as info:
            database.restore(beyond)
        assert info.value.code == "REGISTRY_REVISION"


def test_a_check_beside_a_gateways_files_prints_one_document_whatever_it_finds(
    database: ConfigDatabase, tmp_path: Path
) -> None:
    settings = json.loads(database.settings.model_dump_json())
    (tmp_path / "database.yaml").write_text(json.dumps({"postgres": settings}))
    files = {
        "schema_version": 1,
        "state_dir": "state",
        "litellm": {"inline": {"model_list": []}, "master_key_file": "master.key", "secrets": {"UPSTREAM_KEY": "key"}},
        "live": {"postgres": settings, "destinations": ["*:1"]},
    }
    (tmp_path / "appliance.yaml").write_text(json.dumps(files))
    named = ["--database", str(tmp_path / "database.yaml"), "--gateway", str(tmp_path / "appliance.yaml"), "--json"]
    execute(database.settings, deployment("small"))
    done = CliRunner().invoke(app, ["check", *named])
    assert done.exit_code == 0, done.output
    assert json.loads(done.stdout)["rows"]["deployment"] == ["small"]
    execute(database.settings, "DELETE FROM deployment")
    done = CliRunner().invoke(app, ["check", *named])
    assert done.exit_code == 1
    assert json.loads(done.stdout)["error"]["code"] == "CONFIG_LIVE"


def test_a_gateway_boots_from_what_it_applied_last_while_the_database_is_away(
    database: ConfigDatabase, watcher: Callable[..., ConfigWatcher], tmp_path: Path
) -> None:
    execute(database.settings, deployment("small"))
    watcher().refresh()
    away = ConfigDatabase(database.settings.model_copy(update={"port": free_port()}))
    applier = Memory()
    booted = ConfigWatcher(away, applier, kept=tmp_path / "kept.json")
    assert list(booted.boot().rows["deployment"]) == ["small"]
    with pytest.raises(RegistryError) as info:
        booted.refresh()
    assert info.value.code == "REGISTRY_DATABASE"
    assert len(applier.applied) == 1
    (tmp_path / "kept.json").write_bytes(b"{")
    assert ConfigWatcher(away, applier, kept=tmp_path / "kept.json").boot().revision == 0


def test_an_editor_without_the_right_to_write_history_still_makes_it(database: ConfigDatabase) -> None:
    with psycopg.connect(**parameters(database.settings), autocommit=True) as connection:
        connection.execute("DROP ROLE IF EXISTS editor")
        connection.execute("CREATE ROLE editor LOGIN PASSWORD 'editor-secret'")
        connection.execute("GRANT USAGE ON SCHEMA appliance TO editor")
        connection.execute("GRANT SELECT, INSERT, UPDATE, DELETE ON appliance.deployment TO editor")
    edited = {**parameters(database.settings), "user": "editor", "password": "editor-secret"}
    with psycopg.connect(**edited) as connection:
        connection.execute(deployment("small"))  # type: ignore[arg-type]
    assert database.history()[0].author == "editor"
    with psycopg.connect(**edited) as connection, pytest.raises(psycopg.errors.InsufficientPrivilege):
        connection.execute("DELETE FROM revision")
    with psycopg.connect(**parameters(database.settings), autocommit=True) as connection:
        connection.execute("DROP OWNED BY editor")
        connection.execute("DROP ROLE editor")


def test_a_transaction_that_would_write_a_false_history_is_refused(database: ConfigDatabase) -> None:
    with psycopg.connect(**parameters(database.settings)) as connection:
        connection.isolation_level = psycopg.IsolationLevel.REPEATABLE_READ
        with pytest.raises(psycopg.errors.RaiseException):
            connection.execute(deployment("small"))  # type: ignore[arg-type]


def test_writers_at_once_make_revisions_in_the_order_of_their_commits(database: ConfigDatabase) -> None:
    threads = [
        threading.Thread(target=execute, args=(database.settings, deployment(f"d{number}"))) for number in range(8)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(database.history()) == 8
    assert len(database.read(LiveConfig()).rows["deployment"]) == 8, "the newest revision holds every commit"


def test_a_database_of_another_authority_is_refused(settings: PostgresSettings, tmp_path: Path) -> None:
    (tmp_path / "other.pem").write_bytes(SmallAuthority().pem)
    with pytest.raises(RegistryError) as info:
        ConfigDatabase(settings.model_copy(update={"ca_file": tmp_path / "other.pem"})).newest()
    assert info.value.code == "REGISTRY_DATABASE"


def test_the_environment_cannot_redirect_or_weaken_the_connection(
    settings: PostgresSettings, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in {
        "PGHOSTADDR": "127.0.0.9",
        "PGSSLMODE": "disable",
        "PGSSLROOTCERT": "/x",
        "PGPORT": "1",
    }.items():
        monkeypatch.setenv(name, value)
    with psycopg.connect(**parameters(settings)) as connection:
        row = connection.execute("SELECT version FROM pg_stat_ssl WHERE pid = pg_backend_pid()").fetchone()
    assert row == ("TLSv1.3",)


def test_the_difference_of_equal_configurations_is_nothing() -> None:
    row = {"id": "a", "model_group": "g", "model": "openai/m", "api_base": "https://h"}
    one = assemble(1, {"deployment": [row]}, LiveConfig())
    assert not difference(one, assemble(2, {"deployment": [row]}, LiveConfig()))
    assert assemble(3, {"deployment": ["no row", {"id": 5}]}, one).problems[0].table == "deployment"
    assert assemble(4, None, one).rows["deployment"] == {}


def test_a_secret_by_reference_among_the_parameters_is_refused() -> None:
    row = {"id": "a", "model_group": "g", "model": "openai/m", "api_base": "https://h"}
    for parameters_ in (
        {"extra_body": {"x": ["os.environ/LITELLM_MASTER_KEY"]}},
        {"base_url": "https://elsewhere"},
        {"ssl_verify": False},
        {"custom_llm_provider": "sagemaker"},
    ):
        [problem] = assemble(1, {"deployment": [{**row, "parameters": parameters_}]}, LiveConfig()).problems
        assert (problem.key, problem.error.code) == ("a", "REGISTRY_ROW")
    assert not assemble(1, {"deployment": [{**row, "parameters": {"rpm": 5}}]}, LiveConfig()).problems


def test_a_table_that_is_not_known_is_said() -> None:
    [problem] = assemble(1, {"deployments": []}, LiveConfig()).problems
    assert (problem.table, problem.error.code) == ("deployments", "REGISTRY_ROW")
    assert assemble(1, ["a"], LiveConfig()).problems


def test_a_source_that_was_never_configured_does_not_empty_what_runs(
    database: ConfigDatabase, watcher: Callable[..., ConfigWatcher]
) -> None:
    execute(database.settings, deployment("small"))
    watcher().refresh()
    with psycopg.connect(**parameters(database.settings), autocommit=True) as connection:
        connection.execute("DROP SCHEMA appliance CASCADE")
    database.migrate()
    assert list(watcher().boot().rows["deployment"]) == ["small"]


def test_what_was_refused_is_still_reported_after_a_restart(
    database: ConfigDatabase, watcher: Callable[..., ConfigWatcher]
) -> None:
    execute(database.settings, deployment("small"))
    watching = watcher()
    watching.refresh()
    execute(database.settings, "UPDATE deployment SET weight = -1")
    watching.refresh()
    again = watcher()
    assert again.boot().rows["deployment"]["small"].weight == 1
    assert [(one.table, one.key, one.error.code) for one in again.running.problems] == [
        ("deployment", "small", "REGISTRY_ROW")
    ]


def test_a_server_that_stops_answering_is_left_within_the_bound(server: PostgresServer, tmp_path: Path) -> None:
    """Frozen, it still holds its connections: no time-out of its own ever comes."""
    settings = server.settings(tmp_path, statement_timeout_s=0.5)
    ConfigDatabase(settings).migrate()
    start = time.monotonic()
    with pytest.raises(RegistryError) as info:
        _ask_while_frozen(ConfigDatabase(settings))
    assert info.value.code == "REGISTRY_DATABASE"
    assert time.monotonic() - start < 60, "which it would never be by itself"


def _ask_while_frozen(database: ConfigDatabase) -> None:
    with database.session() as session:
        backend = session._connection.info.backend_pid
        os.kill(backend, signal.SIGSTOP)
        try:
            session.newest()
        finally:
            os.kill(backend, signal.SIGCONT)
