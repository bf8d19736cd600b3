"""What a deployment costs, settings that may change at run time, and routers of the gateway's own registry."""

from __future__ import annotations

from alembic import op

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None

_UP = """
ALTER TABLE appliance.deployment ADD COLUMN cost double precision;
ALTER TABLE appliance.router_source ALTER COLUMN location DROP NOT NULL;
CREATE TABLE appliance.setting (
    name  text PRIMARY KEY,
    value jsonb NOT NULL
);
CREATE TRIGGER setting_recorded AFTER INSERT OR UPDATE OR DELETE OR TRUNCATE ON appliance.setting
    FOR EACH STATEMENT EXECUTE FUNCTION appliance.record();

CREATE OR REPLACE FUNCTION appliance.document() RETURNS jsonb LANGUAGE sql STABLE SET search_path = appliance AS $$
    SELECT jsonb_build_object(
        'deployment',      (SELECT coalesce(jsonb_agg(to_jsonb(d) ORDER BY id), '[]') FROM deployment d),
        'model_group',     (SELECT coalesce(jsonb_agg(to_jsonb(g) ORDER BY name), '[]') FROM model_group g),
        'application_key', (SELECT coalesce(jsonb_agg(to_jsonb(k) ORDER BY name), '[]') FROM application_key k),
        'router_source',   (SELECT coalesce(jsonb_agg(to_jsonb(r) ORDER BY name), '[]') FROM router_source r),
        'setting',         (SELECT coalesce(jsonb_agg(to_jsonb(s) ORDER BY name), '[]') FROM setting s))
$$;

-- a revision from before a table or column was there gives no rows, or null, for it
CREATE OR REPLACE FUNCTION appliance.restore(wanted bigint) RETURNS void
LANGUAGE plpgsql SET search_path = appliance AS $$
DECLARE old jsonb;
BEGIN
    SELECT r.document INTO old FROM revision r WHERE r.id = wanted;
    IF old IS NULL THEN RAISE EXCEPTION 'no revision %', wanted USING ERRCODE = 'no_data_found'; END IF;
    PERFORM set_config('appliance.comment', 'return to revision ' || wanted, true);
    DELETE FROM deployment; DELETE FROM model_group; DELETE FROM application_key; DELETE FROM router_source;
    DELETE FROM setting;
    INSERT INTO deployment      SELECT * FROM jsonb_populate_recordset(NULL::deployment, old->'deployment');
    INSERT INTO model_group     SELECT * FROM jsonb_populate_recordset(NULL::model_group, old->'model_group');
    INSERT INTO application_key SELECT * FROM jsonb_populate_recordset(NULL::application_key, old->'application_key');
    INSERT INTO router_source   SELECT * FROM jsonb_populate_recordset(NULL::router_source, old->'router_source');
    INSERT INTO setting
        SELECT * FROM jsonb_populate_recordset(NULL::setting, coalesce(old->'setting', '[]'::jsonb));
END $$;
"""


def upgrade() -> None:
    """Add them."""
    op.execute(_UP)


def downgrade() -> None:
    """No way back: `config return` restores contents, a backup restores forms."""
    raise NotImplementedError("return to an older appliance with a backup of its database")
