"""From runs to decisions. Never imports torch."""
