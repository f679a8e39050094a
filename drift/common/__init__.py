"""What every part uses: errors, files, random numbers, batches, statistics, the terminal."""
