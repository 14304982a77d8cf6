"""MLflow as an index of the run folders."""
