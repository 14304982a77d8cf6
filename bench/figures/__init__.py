"""Raw readings and times -> metrics, flags, carbon and cost."""
