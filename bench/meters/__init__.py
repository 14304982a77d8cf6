"""What a run draws: power and energy, from counters, samples or a model."""
