"""Update rules for soft and hard tokens."""
