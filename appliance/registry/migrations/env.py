"""Alembic's entry point: the connection comes from `live.migrate`, with its TLS; there is no ini file."""

from __future__ import annotations

from alembic import context

connection = context.config.attributes["connection"]
context.configure(connection=connection, version_table_schema="appliance", transaction_per_migration=True)
with context.begin_transaction():
    context.run_migrations()
