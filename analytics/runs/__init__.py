"""What is known: stored runs as tables, files and other people's results."""
