"""The engine: rows of all runs, stepped together."""
