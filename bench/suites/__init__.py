"""A suite file -> the runs that it means on a machine."""
