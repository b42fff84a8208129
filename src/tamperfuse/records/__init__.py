"""What a run writes: atomic files, provenance, result rows, the summary; and errors, progress bars, memory, YAML."""
