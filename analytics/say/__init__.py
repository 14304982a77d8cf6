"""Answers as blocks: sentences, tables and figures."""
