"""Finished nodes → results.parquet, summary.json and searches.json."""
