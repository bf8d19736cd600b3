"""Migrations of the configuration's tables; run by `live.migrate`, never by hand."""
