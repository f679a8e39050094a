"""From prompts to graded completions: decoding, caches, sampling, remasking."""
