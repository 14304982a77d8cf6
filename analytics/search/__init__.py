"""Which configuration to use: the search, its study and its result."""
