"""Encoding for `tamperfuse pair`: in this process, in several processes or over a Ray cluster, behind a cache.

Each way is a :data:`tamperfuse.pairing.cache.Compute`: it yields vectors a batch at a time, as they are done, so that the cache
writes each batch before the next. None loads a model before a text has to be encoded.
"""

import logging
import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from contextlib import ExitStack, closing, contextmanager
from functools import cache, cached_property, partial
from pathlib import Path
from typing import Any, Literal

from tamperfuse.models.encoder import SentenceEncoder
from tamperfuse.pairing.cache import BATCH, Batch, Compute, VectorCache, Vectors, batch_ranges, in_batches
from tamperfuse.records.errors import UserError
from tamperfuse.records.files import sha256_of
from tamperfuse.records.ray_workers import prepare_ray
from tamperfuse.records.reading import local_path

Dtype = Literal["float32", "bfloat16"]
Encode = Callable[[Sequence[str]], Vectors]


class CachedEncoder:
    """A :class:`tamperfuse.models.encoder.TextEncoder` that stores the vectors of every text on disk."""

    def __init__(self, name: str, compute: Compute, folder: Path, dtype: str = "float32") -> None:
        """Open the cache.

        Args:
            name: of the model.
            compute: encodes texts that are not in the cache.
            folder: of the cache.
            dtype: precision of the model; it decides the file.
        """
        self.name = name
        self._compute = compute
        self.cache = VectorCache(folder, ["encoder", _identity(name), dtype])

    def encode(self, texts: Sequence[str]) -> Vectors:
        """See :class:`tamperfuse.models.encoder.TextEncoder`."""
        return self.cache.get(texts, self._compute)

    def close(self) -> None:
        """Close the cache."""
        self.cache.close()


@contextmanager
def open_encoder(
    name: str, dtype: Dtype, *, workers: int, executor: Literal["local", "ray"], folder: Path
) -> Iterator[CachedEncoder]:
    """An encoder with its cache; processes that it starts end with the `with` block.

    Args:
        name: a sentence-transformers model: bundled name, directory or Hub id.
        dtype: its precision.
        workers: processes, or Ray tasks at once, at least 1.
        executor: "ray" encodes over a Ray cluster.
        folder: of the cache.

    Raises:
        UserError: the executor is "ray" and Ray is not installed.
    """
    encode = partial(encode_batch, name, dtype)
    with ExitStack() as stack:
        if executor == "ray":
            compute: Compute = stack.enter_context(closing(RayCompute(encode, workers)))
        elif workers > 1:
            compute = stack.enter_context(closing(ProcessPoolCompute(encode, workers)))
        else:
            compute = in_batches(encode)
        yield stack.enter_context(closing(CachedEncoder(name, compute, folder, dtype)))


def _identity(name: str) -> object:
    """What vectors depend on: the content of a directory, which may change while its name stays; otherwise the name."""
    folder = local_path(name)
    if not folder.is_dir():
        return name
    return [
        [file.relative_to(folder).as_posix(), sha256_of(file)] for file in sorted(folder.rglob("*")) if file.is_file()
    ]


@cache
def _loaded(name: str, dtype: Dtype) -> SentenceEncoder:
    """The encoder of this process, loaded once."""
    return SentenceEncoder(name, batch_size=BATCH, dtype=dtype)


def encode_batch(name: str, dtype: Dtype, texts: Sequence[str]) -> Vectors:
    """Encode in this process. Shape (texts, dimensions)."""
    return _loaded(name, dtype).encode(texts)


class ProcessPoolCompute:
    """Encodes in several processes of this machine; they start with the first text and stay until `close`."""

    def __init__(self, encode: Encode, workers: int) -> None:
        """Set up; no process starts yet.

        Args:
            encode: encodes a batch in a process; picklable.
            workers: number of processes.
        """
        self._encode, self._workers = encode, workers

    @cached_property
    def _pool(self) -> ProcessPoolExecutor:
        context = multiprocessing.get_context("spawn")  # a fork of a process with torch's threads may hang
        return ProcessPoolExecutor(self._workers, context, initializer=_start_worker, initargs=(self._workers,))

    def __call__(self, texts: Sequence[str]) -> Iterator[Batch]:
        """See :data:`tamperfuse.pairing.cache.Compute`."""
        running: dict[Future[Vectors], range] = {}
        try:
            for batch in batch_ranges(len(texts)):
                running[self._pool.submit(self._encode, [texts[index] for index in batch])] = batch
            for future in as_completed(running):
                yield running[future], future.result()
        except BrokenProcessPool as error:
            raise UserError(
                "A process that encoded was killed, perhaps because memory ran out: run again with fewer --workers; "
                "texts that were encoded already are cached."
            ) from error
        finally:
            for future in running:  # otherwise an interrupt would wait until all texts are encoded
                future.cancel()

    def close(self) -> None:
        """End the processes."""
        if "_pool" in self.__dict__:
            self._pool.shutdown(cancel_futures=True)


def _start_worker(workers: int) -> None:
    """Divide the processor cores, leave Ctrl-C to the parent process, and end when the parent ends."""
    # torch reads it when it is imported, which this process has not done yet.
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // workers)))
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_exit_with_parent, daemon=True).start()


def _exit_with_parent() -> None:
    """Exit when the parent process ends: a killed parent cannot stop its workers, which would wait for work for ever."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)


class RayCompute:
    """Encodes over Ray Data, one batch of texts in a task; a Ray worker loads the encoder once for all its tasks.

    The cluster is the one that `ray.init()` connects to: RAY_ADDRESS, or a new one on this machine. tamperfuse must be installed
    on every machine of it, and every machine must be able to load the model.
    """

    def __init__(self, encode: Encode, workers: int) -> None:
        """Set up.

        Args:
            encode: encodes a batch; picklable.
            workers: tasks at once, at least 1; a task takes one processor core.

        Raises:
            UserError: Ray is not installed.
        """
        self._encode, self._workers = encode, workers
        self._started = False
        prepare_ray()

    def __call__(self, texts: Sequence[str]) -> Iterator[Batch]:
        """See :data:`tamperfuse.pairing.cache.Compute`."""
        import ray.data

        if not ray.is_initialized():
            ray.init(log_to_driver=False, logging_level=logging.WARNING)
            self._started = True
        ray.data.DataContext.get_current().enable_progress_bars = False
        rows = [{"index": index, "text": text} for index, text in enumerate(texts)]
        encoded = ray.data.from_items(rows, override_num_blocks=len(batch_ranges(len(rows)))).map_batches(
            _encode_rows,
            fn_kwargs={"encode": self._encode},
            batch_size=BATCH,
            compute=ray.data.TaskPoolStrategy(size=self._workers),
        )
        for batch in encoded.iter_batches(batch_size=None):
            yield batch["index"].tolist(), batch["vector"]

    def close(self) -> None:
        """Disconnect from the cluster if this object connected to it."""
        if self._started:
            import ray

            ray.shutdown()


def _encode_rows(batch: dict[str, Any], encode: Encode) -> dict[str, Any]:
    """Turn a Ray Data batch of indices and texts into one of indices and vectors."""
    return {"index": batch["index"], "vector": encode([str(text) for text in batch["text"]])}
