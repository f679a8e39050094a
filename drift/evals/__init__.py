"""Checkpoints under evaluation protocols: cells, results, paired comparison."""
