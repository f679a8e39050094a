"""What a run leaves on disk and in stores: checkpoints, metrics, manifest, sweeps."""
