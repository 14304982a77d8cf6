"""How training scales: the law, its fits and predictions."""
