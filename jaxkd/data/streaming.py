"""Splits that are larger than memory: examples are read, viewed and batched by Grain while training runs.

A batch depends on its example ids, the seed and the epoch alone, so the stream can begin at any step, and
every process can read its own share.
"""

from __future__ import annotations

import atexit
import contextlib
import ctypes
import dataclasses
import functools
import multiprocessing
import operator
import re
import signal
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Protocol

import numpy as np
from absl import flags


class Source(Protocol):
    """Examples by id: mappings with "image", uint8 `[H, W, C]`, and "label", an integer.

    What `tfds.data_source` returns is one, and so is a list of dictionaries.
    """

    def __len__(self) -> int: ...

    def __getitem__(self, example_id: int, /) -> Mapping[str, Any]: ...


_PR_SET_PDEATHSIG = 1
_SIGNALS = {signal.SIGINT, signal.SIGTERM}


@dataclasses.dataclass(frozen=True)
class StreamedSplit:
    """A split that is read example by example.

    Attributes:
      source: the examples; an example's id is its index.
      image_shape: height, width, channels of the images after the views below.
      digest: identifies the source in the run's identity.
      train_view: `(image, *, seed, epoch, example_id) -> image`, on the host, for training; by default
        nothing is done there.
      eval_view: `image -> image`, the same for evaluation.
      workers: processes that read; 0 for threads of this one, which is enough where decoding releases
        Python's lock, as Pillow does.
      num_classes: bounds the labels; its dataset sets it.
    """

    source: Source
    image_shape: tuple[int, int, int]
    digest: str
    train_view: Callable[..., np.ndarray] | None = None
    eval_view: Callable[[np.ndarray], np.ndarray] | None = None
    workers: int = 0
    num_classes: int | None = None

    def __post_init__(self) -> None:
        if not len(self.source):
            raise ValueError("a split must hold at least one example, got none")
        if self.workers < 0:
            raise ValueError(f"workers must be at least 0, got {self.workers}")

    def __len__(self) -> int:
        return len(self.source)

    def labels_of(self, ids: Sequence[int]) -> list[int]:
        """The labels of some examples, which are read for it."""
        return [int(self.source[example_id]["label"]) for example_id in ids]

    def batches(
        self, ids: np.ndarray, *, seed: int = 0, epoch: int | None = None
    ) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """Reads batches ahead of their use, in order.

        Args:
          ids: example ids, `[S, B]`; -1 for padding.
          seed: the run's seed.
          epoch: of the views, from 1; None for evaluation.

        Yields:
          Images, uint8 `[B, H, W, C]`, and labels, int32 `[B]`; zeros where there is no example.

        Raises:
          ChildProcessError: a worker was killed.

        >>> source = [{"image": np.full((2, 2, 1), i, np.uint8), "label": i} for i in range(5)]
        >>> split = StreamedSplit(source, (2, 2, 1), digest="five")
        >>> [labels.tolist() for _, labels in split.batches(np.array([[3, 1], [4, -1]]))]
        [[3, 1], [4, 0]]
        """
        import grain  # here, since it takes longer to import than most runs need it

        if not ids.size:
            return
        examples = _Examples(self, ids.ravel(), seed, epoch)
        dataset = grain.MapDataset.source(examples).batch(ids.shape[1])
        stream = dataset.to_iter_dataset(grain.ReadOptions(num_threads=8, prefetch_buffer_size=8))
        if self.workers:
            if not flags.FLAGS.is_parsed():
                flags.FLAGS.mark_as_parsed()  # Grain reads absl's flags, and this command line is not absl's
            _end_workers_at_exit()
            options = grain.MultiprocessingOptions(num_workers=self.workers)
            stream = stream.mp_prefetch(options, worker_init_fn=_leave_signals_to_the_parent)
        read = iter(stream)
        with _signals_held_back() if self.workers else contextlib.nullcontext():
            batch = _next(read)  # begins the workers
        while batch is not None:
            yield batch["image"], batch["label"]
            batch = _next(read)


def _next(read: Iterator[dict[str, np.ndarray]]) -> dict[str, np.ndarray] | None:
    """The next batch; None after the last."""
    try:
        return next(read, None)
    except RuntimeError as error:
        killed = re.search(r"Worker process was terminated unexpectedly with exit code (-?\d+)", str(error))
        if killed is None:
            raise
        raise ChildProcessError(
            f"a process that reads images ended with exit code {killed[1]}; if memory was short, lower "
            "--workers, or leave it out for threads"
        ) from None


@dataclasses.dataclass(frozen=True)
class _Examples:
    """The examples of some batches, one after the other, as Grain reads them: by place."""

    split: StreamedSplit
    ids: np.ndarray
    seed: int
    epoch: int | None

    def __len__(self) -> int:
        return len(self.ids)

    def __getitem__(self, place: Any) -> dict[str, Any]:
        example_id = int(self.ids[place])
        if example_id < 0:
            return {"image": np.zeros(self.split.image_shape, np.uint8), "label": np.int32(0)}
        example = self.split.source[example_id]
        image = np.asarray(example["image"])
        if self.epoch is None and self.split.eval_view is not None:
            image = self.split.eval_view(image)
        elif self.epoch is not None and self.split.train_view is not None:
            image = self.split.train_view(image, seed=self.seed, epoch=self.epoch, example_id=example_id)
        if image.shape != self.split.image_shape or image.dtype != np.uint8:
            raise ValueError(
                f"example {example_id} is {image.dtype} {list(image.shape)}, and the split's images are "
                f"uint8 {list(self.split.image_shape)}; give the split a view that makes them so"
            )
        given, most = example["label"], self.split.num_classes or 2**31
        try:
            label = operator.index(given.item() if isinstance(given, np.generic) else given)
        except TypeError:
            label = None
        if label is None or not 0 <= label < most:
            hidden = "; where labels are hidden (-1), take another split" if label == -1 else ""
            raise ValueError(
                f"the label of example {example_id} must be a whole number from 0 to {most - 1}, "
                f"got {given!r:.60}{hidden}"
            )
        return {"image": image, "label": np.int32(label)}


def _leave_signals_to_the_parent(worker: int, num_workers: int) -> None:
    """Terminals and schedulers signal all processes; the parent saves first, and then ends its workers."""
    linux = sys.platform == "linux"
    if linux:  # a parent that is killed cannot end its workers: the kernel does
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN if linux else signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, _SIGNALS)


@contextlib.contextmanager
def _signals_held_back() -> Iterator[None]:
    """Processes begun meanwhile inherit it, so that no signal ends them before they ignore it."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, _SIGNALS)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


@functools.cache
def _end_workers_at_exit() -> None:
    """Python ends a process's children with SIGTERM, which these ignore, and would wait forever.

    What they leave in shared memory, Python's own process for that removes; it need not warn of it.
    """
    sys.warnoptions.append("ignore::UserWarning:multiprocessing.resource_tracker")

    def end() -> None:
        for child in multiprocessing.active_children():
            if child.name.startswith("grain-"):
                child.kill()

    atexit.register(end)


def in_memory(images: np.ndarray, labels: np.ndarray) -> StreamedSplit:
    """A split in the host's memory, streamed to the devices: for a set that does not fit on those.

    Args:
      images: uint8 `[N, H, W, C]`.
      labels: integers `[N]`.

    >>> len(in_memory(np.zeros((3, 8, 8, 1), np.uint8), np.zeros(3, np.int32)))
    3
    """
    height, width, channels = images.shape[1:]
    return StreamedSplit(Arrays(images, labels), (height, width, channels), digest="in memory")


@dataclasses.dataclass(frozen=True)
class Arrays:
    """Examples in memory."""

    images: np.ndarray
    labels: np.ndarray

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, example_id: int) -> dict[str, Any]:
        return {"image": self.images[example_id], "label": self.labels[example_id]}
