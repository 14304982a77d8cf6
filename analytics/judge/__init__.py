"""What differs: intervals, comparisons, gates, fronts and advice."""
