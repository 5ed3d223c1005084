"""Running a teacher ahead of training: on all views of the training images, or on those of some runs.

The results go into a `TeacherCache`; the same call resumes after a stop, since it computes only what is
missing.
"""

from __future__ import annotations

import contextlib
import functools
import logging
import time
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxkd import data, teachers
from jaxkd._names import describe_object
from jaxkd._paths import cache_folder
from jaxkd.cache.store import CacheKey, TeacherCache
from jaxkd.data.augment import Numbered, outcomes
from jaxkd.data.batch import Batch
from jaxkd.data.order import batches
from jaxkd.devices import replicate, share
from jaxkd.files.leases import BusyError
from jaxkd.models import Network
from jaxkd.progress import Say, duration
from jaxkd.training.mapped import mapped_teacher_rows

SPLIT = "train"
# A segment of the cache is written this often: a kill loses at most this much work.
_SECONDS_BETWEEN_WRITES = 20.0
_SECONDS_BETWEEN_LOOKS = 0.5  # at a cache that another process fills

logger = logging.getLogger("jaxkd")


def cacheable_split(dataset: data.Dataset) -> data.Split:
    """The training images.

    Raises:
      ValueError: they are streamed; their crops cannot be enumerated, so no cache can hold them.
    """
    split = dataset.splits[SPLIT]
    if isinstance(split, data.StreamedSplit):
        raise ValueError(
            f"{dataset.name} is streamed, and its crops cannot be enumerated: no cache can hold all their "
            "logits. Train with --cache off"
        )
    return split


def cache_key(
    teacher: teachers.Teacher, dataset: data.Dataset, augmentation: Numbered, *, pooled: bool = False
) -> CacheKey:
    """The key of a teacher's logits on the views of a dataset's training images.

    Args:
      teacher: the teacher.
      dataset: with the training images.
      augmentation: the view's augmentation.
      pooled: whether the cache holds pooled features too.

    Raises:
      ValueError: the teacher has no pooled features.
    """
    known, split = teacher.description, cacheable_split(dataset)
    options = (f"{name}={value}" for name, value in known.model_options.items())
    return CacheKey(
        teacher=teacher.digest,
        model=" ".join(filter(None, (known.model, *options, teacher.module))),
        mean=known.mean,
        std=known.std,
        split=SPLIT,
        images=split.digest,
        num_examples=len(split),
        num_classes=teacher.num_classes,
        augmentation=describe_object(augmentation),
        pooled=_num_pooled(teacher, dataset) if pooled else 0,
    )


def _num_pooled(teacher: teachers.Teacher, dataset: data.Dataset) -> int:
    network, variables = teacher.frozen
    outputs = network.output_shapes(variables, dataset.image_shape)
    if "pooled" not in outputs.features:
        raise ValueError(f'{teacher.name} has no feature "pooled" for a cache to hold')
    return int(outputs.features["pooled"].shape[-1])


def default_folder(key: CacheKey, teacher: teachers.Teacher, dataset: data.Dataset) -> Path:
    """The folder where training looks for a key's cache."""
    return cache_folder() / "logits" / f"{Path(dataset.name).stem}-{teacher.name}-{key.digest}"


def epoch_codes(num_examples: int, augmentation: Numbered, *, seed: int, epoch: int) -> np.ndarray:
    """The code of each example's view in an epoch, int64 `[N]`: `id * count + outcome`.

    >>> epoch_codes(3, data.Identity(), seed=0, epoch=1).tolist()
    [0, 1, 2]
    """
    numbers = _epoch_views(num_examples, np.uint32(seed % 2**32), np.int32(epoch), augmentation)
    return np.arange(num_examples) * augmentation.count + np.asarray(numbers)


@functools.partial(jax.jit, static_argnums=(0, 3))
def _epoch_views(num_examples: int, seed: jax.Array, epoch: jax.Array, augmentation: Numbered) -> jax.Array:
    return outcomes(augmentation, jnp.arange(num_examples), seed=seed, epoch=epoch)


def wanted_codes(
    num_examples: int, augmentation: Numbered, *, seeds: Iterable[int], num_epochs: int | None
) -> np.ndarray:
    """The codes of all views of some runs, sorted and unique; the codes of all views for None."""
    every = num_examples * augmentation.count
    if num_epochs is None:
        return np.arange(every)
    seen = np.zeros(every, bool)
    for seed in seeds:
        for epoch in range(1, num_epochs + 1):
            seen[epoch_codes(num_examples, augmentation, seed=seed, epoch=epoch)] = True
    return np.flatnonzero(seen)


class Filler:
    """Computes the missing rows of a cache.

    Args:
      cache: the cache to fill.
      network: the teacher.
      variables: the teacher's variables.
      split: the split with the images.
      augmentation: the augmentation of the cached view.
      devices: the devices to compute on.
      batch_size: views per step, over all devices.
      patient: whether to wait while another process fills the cache: its views are then found, and not
        computed again.
    """

    def __init__(
        self,
        cache: TeacherCache,
        network: Network,
        variables: Any,
        split: data.Split,
        augmentation: Numbered,
        *,
        devices: Sequence[jax.Device],
        batch_size: int = 256,
        patient: bool = False,
    ) -> None:
        self._cache = cache
        self._patient, self._waited = patient, False
        self._augmentation = augmentation
        self._devices = devices
        self._batch_size = -(-batch_size // len(devices)) * len(devices)
        self._placed = replicate((variables, (split.images, split.labels)), devices)
        where = tuple(devices)
        self._function = mapped_teacher_rows(network, augmentation, cache.dtype, where, cache.has_pooled)

    def __call__(
        self,
        codes: np.ndarray,
        *,
        progress: Callable[[int, int], None] = lambda done, total: None,
        stop: Callable[[], bool] = lambda: False,
    ) -> int:
        """Computes the views that the cache lacks.

        Args:
          codes: the requested views.
          progress: called after each batch with the numbers of computed and of missing views.
          stop: called after each batch; if it returns true, the computed rows are written and the rest is
            skipped.

        Returns:
          The number of computed views.

        Raises:
          FloatingPointError: the teacher's logits are not finite, in the precision of the cache.
          BusyError: another process fills the cache, and this one is not patient.
        """
        if not len(self._cache.missing(codes)):
            return 0
        done, parts = 0, []
        with contextlib.ExitStack() as alone:
            while not self._begin(alone):
                if stop():
                    return 0
                time.sleep(_SECONDS_BETWEEN_LOOKS)
            missing = self._cache.missing(codes)  # another writer may have added some
            if not len(missing):
                return 0
            written_at = time.monotonic()
            for logits in self._batches(missing):
                parts.append(self._finite(logits, missing[done:]))
                done += len(logits)
                progress(done, len(missing))
                stopping = stop() or done == len(missing)
                if stopping or time.monotonic() - written_at > _SECONDS_BETWEEN_WRITES:
                    rows = np.concatenate(parts)
                    self._cache.append(missing[done - len(rows) : done], rows)
                    parts, written_at = [], time.monotonic()
                if stopping:
                    break
        return done

    def _begin(self, alone: contextlib.ExitStack) -> bool:
        """Locks out other writers until `alone` ends; false if one is at work, and this one is patient."""
        try:
            alone.enter_context(self._cache.writing())
        except BusyError:
            if not self._patient:
                raise
            if not self._waited:
                logger.warning("waiting for another process that fills %s", self._cache.folder)
            self._waited = True
            return False
        return True

    def _batches(self, codes: np.ndarray) -> Iterable[np.ndarray]:
        """The logits batch by batch; the devices compute the next batch while the caller handles this one."""
        waiting = None
        for batch in batches(np.arange(len(codes)), self._batch_size):
            own = codes[batch[batch >= 0]]
            ids, numbers = np.divmod(np.resize(own, self._batch_size), self._augmentation.count)
            ids, numbers = (share(part.astype(np.int32), len(self._devices)) for part in (ids, numbers))
            now = self._function(*self._placed, Batch(ids), numbers), len(own)
            if waiting is not None:
                yield self._fetch(*waiting)
            waiting = now
        if waiting is not None:
            yield self._fetch(*waiting)

    def _fetch(self, logits: jax.Array, count: int) -> np.ndarray:
        host = jax.device_get(logits)
        return host.reshape(-1, host.shape[-1])[:count]

    def _finite(self, logits: np.ndarray, codes: np.ndarray) -> np.ndarray:
        bad = ~np.isfinite(logits.astype(np.float32)).all(-1)
        if bad.any():
            example, number = divmod(int(codes[np.argmax(bad)]), self._augmentation.count)
            raise FloatingPointError(
                f"the teacher's logits for view {number} of training image {example} are NaN or infinite in "
                f"{self._cache.dtype}; check the teacher with `jaxkd evaluate`, and if it is intact, build "
                "the cache with --dtype float32"
            )
        return logits


class FillProgress:
    """Reports a teacher's progress, at intervals that grow with the elapsed time."""

    def __init__(self, say: Say) -> None:
        self._say = say
        self._start: float | None = None
        self._first = 0  # views of the first batch, which compiles and is not counted

    def __call__(self, done: int, total: int) -> None:
        """Records that `done` of `total` views are computed."""
        now = time.monotonic()
        if self._start is None or done <= self._first:  # the first batch of a fill
            self._start, self._first, self._said = now, done, now
            return
        if now - self._said > max(2.0, (now - self._start) / 40):
            self._said = now
            rate = (done - self._first) / (now - self._start)
            self._say(
                f"teacher: {done:,} of {total:,} views  {rate:.0f} views/s  "
                f"{duration((total - done) / rate)} left"
            )
