"""How a command starts: composed settings, checks before the start, help."""
