"""Blocks as files and figures."""
