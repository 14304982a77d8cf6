"""Jobs of a cluster, from its login node: what they do, how they are followed, and what becomes of their runs."""
