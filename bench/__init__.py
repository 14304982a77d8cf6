"""Run and measure: suites of training runs, with their energy, carbon and cost."""
