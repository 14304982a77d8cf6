"""Plotly figures, one file a page."""
