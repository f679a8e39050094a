"""A run from start to end: the loop, which prompts, what is reported."""
