"""Execution of runs: order, resume, launch, collect."""
