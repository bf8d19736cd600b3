"""The drill: every runbook done for real, on an installation made for it and thrown away afterwards."""
