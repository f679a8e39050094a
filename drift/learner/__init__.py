"""From graded completions to optimizer steps: views, log-probs, advantages, losses, updates."""
