"""Processes that start in milliseconds, since they are forked from a server that has imported everything: one for all tests."""

import multiprocessing

CONTEXT = multiprocessing.get_context("forkserver")
# Installed modules only: the server does not see the tests' folder, and passes over what it cannot import.
CONTEXT.set_forkserver_preload(
    [
        "tamperfuse.study.run",
        "tamperfuse.pairing.pipeline",
        "altair",
        "huggingface_hub",
        "jinja2",
        "pyarrow.parquet",
        "pytest",
    ]
)
