"""Encoders for `tamperfuse pair`: in this process, in several, over a Ray cluster; and the cache before all of them.

Each is a :data:`tamperfuse.pairing.cache.Compute`: it gives vectors a batch at a time, as they are done, so that the cache
keeps each before the next. None loads a model before a text has to be encoded: a warm run loads none.
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
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal

from tamperfuse.models.encoder import SentenceEncoder
from tamperfuse.pairing.cache import BATCH, Batch, Compute, VectorCache, Vectors, in_batches, parts
from tamperfuse.records.errors import UserError
from tamperfuse.records.files import sha256_of

Dtype = Literal["float32", "bfloat16"]
Encode = Callable[[Sequence[str]], Vectors]


class CachedEncoder:
    """An encoder that remembers every text it has seen."""

    def __init__(self, name: str, compute: Compute, folder: Path, dtype: str = "float32") -> None:
        """Keep what `compute` gives for the model `name` in `folder`."""
        self.name = name
        self._compute = compute
        self.cache = VectorCache(folder, ["encoder", _identity(name), dtype])

    def encode(self, texts: Sequence[str]) -> Vectors:
        """See :class:`tamperfuse.pairing.match.Encoder`."""
        return self.cache.get(texts, self._compute)

    def close(self) -> None:
        """Close the cache."""
        self.cache.close()


@contextmanager
def open_encoder(
    name: str, dtype: Dtype, *, workers: int, executor: Literal["local", "ray"], folder: Path
) -> Iterator[CachedEncoder]:
    """An encoder with its cache; the processes that it started end with the block.

    Args:
        name: a sentence-transformers model: bundled name, directory or Hub id.
        dtype: its precision.
        workers: processes or Ray tasks at once, at least 1.
        executor: "ray" encodes over a Ray cluster.
        folder: where vectors are kept.

    Raises:
        UserError: Ray is asked for and not installed.
    """
    encode = partial(encode_batch, name, dtype)
    with ExitStack() as stack:
        if executor == "ray":
            compute: Compute = stack.enter_context(closing(RayEncoder(encode, workers)))
        elif workers > 1:
            compute = stack.enter_context(closing(WorkerEncoder(encode, workers)))
        else:
            compute = in_batches(encode)
        yield stack.enter_context(closing(CachedEncoder(name, compute, folder, dtype)))


def _identity(name: str) -> object:
    """What vectors depend on: a directory's content, which may change under its name; else the name."""
    folder = Path(name).expanduser()
    if not folder.is_dir():
        return name
    return [
        [file.relative_to(folder).as_posix(), sha256_of(file)] for file in sorted(folder.rglob("*")) if file.is_file()
    ]


@cache
def _loaded(name: str, dtype: Dtype) -> SentenceEncoder:
    """The process's one copy of an encoder; whoever computes next in this process finds it loaded."""
    return SentenceEncoder(name, batch_size=BATCH, dtype=dtype)


def encode_batch(name: str, dtype: Dtype, texts: Sequence[str]) -> Vectors:
    """Encode in this process. Shape (texts, dimensions)."""
    return _loaded(name, dtype).encode(texts)


class WorkerEncoder:
    """Encodes in several processes of this machine; they start with the first text and stay until `close`."""

    def __init__(self, encode: Encode, workers: int) -> None:
        """Take what encodes a batch in a process, which must be picklable, and the number of processes."""
        self._encode, self._workers = encode, workers

    @cached_property
    def _pool(self) -> ProcessPoolExecutor:
        context = multiprocessing.get_context("spawn")  # a fork of a process with torch's threads may hang
        return ProcessPoolExecutor(self._workers, context, initializer=_start_worker, initargs=(self._workers,))

    def __call__(self, texts: Sequence[str]) -> Iterator[Batch]:
        """See :data:`tamperfuse.pairing.cache.Compute`."""
        running: dict[Future[Vectors], range] = {}
        try:
            for part in parts(len(texts)):
                running[self._pool.submit(self._encode, [texts[at] for at in part])] = part
            for done in as_completed(running):
                yield running[done], done.result()
        except BrokenProcessPool as error:
            raise UserError(
                "A process that encoded was ended from outside, perhaps for want of memory: run again with fewer --workers; "
                "what was encoded is kept."
            ) from error
        finally:
            for left in running:  # or an interrupt would wait until all are encoded
                left.cancel()

    def close(self) -> None:
        """End the processes."""
        if "_pool" in self.__dict__:
            self._pool.shutdown(cancel_futures=True)


def _start_worker(workers: int) -> None:
    """Share the processor, leave Ctrl-C to the parent, and never outlive it."""
    # Read by torch when it is imported, which in this process is still to come.
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // workers)))
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_leave_with_parent, daemon=True).start()


def _leave_with_parent() -> None:
    """A killed parent cannot end its workers, and they would wait for work for ever."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)


class RayEncoder:
    """Encodes over Ray Data, a batch of texts a task; a Ray worker keeps its encoder from task to task.

    The cluster is the one that `ray.init()` finds: RAY_ADDRESS, or a new one on this machine. Every machine needs tamperfuse
    and must be able to load the model.
    """

    def __init__(self, encode: Encode, workers: int) -> None:
        """Set up.

        Args:
            encode: what encodes a batch on whatever machine; picklable.
            workers: tasks at once, at least 1; each takes one processor.

        Raises:
            UserError: Ray is not installed.
        """
        self._encode, self._workers = encode, workers
        self._started = False
        if find_spec("ray") is None:
            raise UserError("--executor ray needs Ray: pip install 'tamperfuse[ray]'.")

    def __call__(self, texts: Sequence[str]) -> Iterator[Batch]:
        """See :data:`tamperfuse.pairing.cache.Compute`."""
        import ray.data

        if not ray.is_initialized():
            ray.init(log_to_driver=False, logging_level=logging.WARNING)
            self._started = True
        ray.data.DataContext.get_current().enable_progress_bars = False
        rows = [{"at": at, "text": text} for at, text in enumerate(texts)]
        done = ray.data.from_items(rows, override_num_blocks=len(parts(len(rows)))).map_batches(
            _encode_rows,
            fn_kwargs={"encode": self._encode},
            batch_size=BATCH,
            compute=ray.data.TaskPoolStrategy(size=self._workers),
        )
        for batch in done.iter_batches(batch_size=None):
            yield batch["at"].tolist(), batch["vector"]

    def close(self) -> None:
        """Leave the cluster, if it was joined or started here."""
        if self._started:
            import ray

            ray.shutdown()


def _encode_rows(batch: dict[str, Any], encode: Encode) -> dict[str, Any]:
    """A batch of Ray Data: rows of place and text to rows of place and vector."""
    return {"at": batch["at"], "vector": encode([str(text) for text in batch["text"]])}
