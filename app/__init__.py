"""The dashboard. Never imports torch."""
