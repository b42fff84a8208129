"""What a run writes down, and how: errors, atomic files, provenance, result rows, the summary."""
