"""Processes: the engine of a rank, ZeRO, launching, hang detection, signals, SLURM."""
