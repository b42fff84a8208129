"""Where prompts and responses come from: sources, built-in data, threats."""
