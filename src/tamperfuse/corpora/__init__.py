"""Sources of prompts and responses: files, Hub data sets, built-in data, threats, benign tasks."""
