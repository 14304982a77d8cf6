"""From a suite file to the runs that it describes on a machine."""
