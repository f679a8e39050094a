"""Before a run costs anything: memory, traffic and FLOPs, checks of a checkpoint."""
