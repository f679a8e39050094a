"""HTML pages that show denoising step by step."""
