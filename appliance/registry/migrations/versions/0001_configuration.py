"""The configuration's tables, a revision a transaction, and a notice after each.

Editors change rows with any SQL tool: triggers keep the history. A revision holds the whole configuration as it stood
at the end of its transaction, so that returning to one needs nothing else.
"""

from __future__ import annotations

from alembic import op

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None

TABLES = ("deployment", "model_group", "application_key", "router_source")

_UP = """
CREATE TABLE appliance.deployment (
    id            text PRIMARY KEY,
    model_group   text NOT NULL,
    model         text NOT NULL,
    api_base      text NOT NULL,
    key_reference text,
    weight        integer NOT NULL DEFAULT 1,
    parameters    jsonb NOT NULL DEFAULT '{}'
);
CREATE TABLE appliance.model_group (
    name        text PRIMARY KEY,
    strategy    text NOT NULL DEFAULT 'round-robin',
    router      text,
    cost_weight double precision NOT NULL DEFAULT 0,
    last_resort text
);
CREATE TABLE appliance.application_key (
    name   text PRIMARY KEY,
    sha256 text NOT NULL,
    groups text[] NOT NULL DEFAULT '{}'
);
CREATE TABLE appliance.router_source (
    name     text PRIMARY KEY,
    location text NOT NULL,
    channel  text NOT NULL
);
CREATE TABLE appliance.revision (
    id          bigserial PRIMARY KEY,
    transaction bigint NOT NULL UNIQUE,
    at          timestamptz NOT NULL DEFAULT now(),
    author      text NOT NULL DEFAULT session_user,
    comment     text NOT NULL DEFAULT coalesce(current_setting('appliance.comment', true), ''),
    document    jsonb NOT NULL
);

CREATE FUNCTION appliance.document() RETURNS jsonb LANGUAGE sql STABLE SET search_path = appliance AS $$
    SELECT jsonb_build_object(
        'deployment',      (SELECT coalesce(jsonb_agg(to_jsonb(d) ORDER BY id), '[]') FROM deployment d),
        'model_group',     (SELECT coalesce(jsonb_agg(to_jsonb(g) ORDER BY name), '[]') FROM model_group g),
        'application_key', (SELECT coalesce(jsonb_agg(to_jsonb(k) ORDER BY name), '[]') FROM application_key k),
        'router_source',   (SELECT coalesce(jsonb_agg(to_jsonb(r) ORDER BY name), '[]') FROM router_source r))
$$;

-- as its owner: editors need no right to write history
CREATE FUNCTION appliance.record() RETURNS trigger LANGUAGE plpgsql SECURITY DEFINER SET search_path = appliance AS $$
BEGIN
    IF current_setting('transaction_isolation') <> 'read committed' THEN
        RAISE EXCEPTION 'change the configuration with isolation level read committed: history follows commits';
    END IF;
    -- one writer at a time, so that revisions stand in the order of their commits
    PERFORM pg_advisory_xact_lock(1280065874, 0);
    INSERT INTO revision (transaction, document) VALUES (txid_current(), document())
        ON CONFLICT (transaction) DO UPDATE SET document = EXCLUDED.document;
    PERFORM pg_notify('appliance_config', '');
    RETURN NULL;
END $$;

CREATE FUNCTION appliance.restore(wanted bigint) RETURNS void LANGUAGE plpgsql SET search_path = appliance AS $$
DECLARE old jsonb;
BEGIN
    SELECT r.document INTO old FROM revision r WHERE r.id = wanted;
    IF old IS NULL THEN RAISE EXCEPTION 'no revision %', wanted USING ERRCODE = 'no_data_found'; END IF;
    PERFORM set_config('appliance.comment', 'return to revision ' || wanted, true);
    DELETE FROM deployment; DELETE FROM model_group; DELETE FROM application_key; DELETE FROM router_source;
    INSERT INTO deployment      SELECT * FROM jsonb_populate_recordset(NULL::deployment, old->'deployment');
    INSERT INTO model_group     SELECT * FROM jsonb_populate_recordset(NULL::model_group, old->'model_group');
    INSERT INTO application_key SELECT * FROM jsonb_populate_recordset(NULL::application_key, old->'application_key');
    INSERT INTO router_source   SELECT * FROM jsonb_populate_recordset(NULL::router_source, old->'router_source');
END $$;
"""


def upgrade() -> None:
    """Make tables, functions and triggers."""
    op.execute(_UP)
    for table in TABLES:
        op.execute(
            f"CREATE TRIGGER {table}_recorded AFTER INSERT OR UPDATE OR DELETE OR TRUNCATE ON appliance.{table}"
            " FOR EACH STATEMENT EXECUTE FUNCTION appliance.record()"
        )


def downgrade() -> None:
    """Remove them, and the history with them."""
    for table in TABLES:
        op.execute(f"DROP TABLE appliance.{table} CASCADE")
    op.execute("DROP TABLE appliance.revision")
    op.execute("DROP FUNCTION appliance.record, appliance.restore, appliance.document CASCADE")
