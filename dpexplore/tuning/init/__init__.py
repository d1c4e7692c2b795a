"""Where restarts begin: layouts, token policies, lookup."""
