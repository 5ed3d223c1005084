"""The source of the teacher's logits in training: the teacher itself, or a matching cache."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from pathlib import Path

import jax
import numpy as np

from jaxkd import data, teachers
from jaxkd.cache.compute import SPLIT, cache_key, default_folder, epoch_codes, wanted_codes
from jaxkd.cache.store import CacheKey, TeacherCache
from jaxkd.data.augment import MAIN, Numbered, is_numbered
from jaxkd.files.places import place
from jaxkd.methods.listing import CACHEABLE
from jaxkd.progress import Say
from jaxkd.training import Task

LIVE = "live"


class CachedLogits:
    """The teacher's logits of one run, from a cache.

    Args:
      cache: with a row for every view of the run, unless `fill` adds them.
      num_examples: the size of the training split.
      augmentation: the augmentation of the view "main".
      seed: the run's seed.
      pooled: whether the method reads pooled features too.
      fill: called before each epoch with its codes (and `stop`); adds the missing rows to the cache.
    """

    def __init__(
        self,
        cache: TeacherCache,
        num_examples: int,
        augmentation: Numbered,
        *,
        seed: int,
        pooled: bool = False,
        fill: Callable[..., int] | None = None,
    ) -> None:
        self.cache = cache
        self._num_examples = num_examples
        self._augmentation = augmentation
        self._seed = seed
        self._pooled = pooled
        self._fill = fill

    def start_epoch(self, epoch: int, stop: Callable[[], bool]) -> None:
        """Finds the rows of an epoch's views, after computing missing ones with `fill`.

        Args:
          epoch: from 1.
          stop: called during the computation; if it returns true, the epoch cannot be trained on.

        Raises:
          ValueError: some rows are missing.
        """
        codes = epoch_codes(self._num_examples, self._augmentation, seed=self._seed, epoch=epoch)
        if self._fill is not None:
            self._fill(codes, stop=stop)
            if stop():
                return
        self._rows = self.cache.locate(codes)

    def of_batch(self, ids: np.ndarray) -> dict[str, np.ndarray]:
        """The cache's entries for a `Batch` of the views of `ids` `[...]` in this epoch, in its precision.

        An id of -1 (padding) gets the logits of another example.
        """
        logits, pooled = self.cache.fetch(self._rows[ids])
        return {"teacher_logits": logits, **({"teacher_pooled": pooled} if self._pooled else {})}


def why_not(task: Task, dataset: data.Dataset) -> str | None:
    """The reason why no cache can serve a run; None if one can."""
    views = dict(task.augmentations)
    if not task.method.reads:
        return "the method reads nothing from a teacher"
    if more := sorted(set(task.method.reads) - CACHEABLE):
        held = " and ".join(sorted(CACHEABLE))
        return f"the method reads {', '.join(more)} from the teacher, but a cache holds only {held}"
    if list(views) != [MAIN]:
        return f"the method has the views {', '.join(views)}, but a cache holds only {MAIN}"
    if not is_numbered(views[MAIN]):
        return f"the outcomes of the augmentation {views[MAIN]} cannot be enumerated"
    if isinstance(dataset.splits[SPLIT], data.StreamedSplit):
        return f"{dataset.name} is streamed, and its crops cannot be enumerated"
    return None


def _with_rows(usual: Path, key: CacheKey, checked: Callable[[TeacherCache], TeacherCache]) -> TeacherCache:
    """The first cache with all rows of a run: the usual one, or one next to it that holds more."""
    try:
        return checked(TeacherCache(usual, key))
    except (FileNotFoundError, ValueError) as error:
        reason = error
    start, others = usual.name.removesuffix(key.digest), []
    for folder in sorted(usual.parent.glob("*")):
        if folder.name.startswith(start):
            with contextlib.suppress(OSError, ValueError):
                others.append(TeacherCache(folder, key))
    for cache in others:
        try:
            return checked(cache)
        except ValueError as error:
            reason = error if isinstance(reason, FileNotFoundError) else reason
    raise reason


def find_cache(
    where: str,
    teacher: teachers.Teacher,
    dataset: data.Dataset,
    augmentation: Numbered,
    *,
    seed: int,
    num_epochs: int,
    before: str | None,
    pooled: bool = False,
    say: Say,
) -> TeacherCache | None:
    """Chooses the source of a run's teacher logits.

    Args:
      where: "auto", "off", "fill" or the folder of a cache.
      teacher: the run's teacher.
      dataset: the run's data.
      augmentation: the augmentation of the run's view "main".
      seed: the run's seed.
      num_epochs: the run's number of epochs.
      before: the source that a resumed run started with, `LIVE` or a cache's precision: "auto" keeps it.
      pooled: whether the method reads pooled features too.
      say: callback for the message that an existing cache is not used.

    Returns:
      The cache to use; None for the teacher itself.

    Raises:
      FileNotFoundError: the cache that was named, or that the run started with, does not exist.
      ValueError: that cache does not match or lacks views.
    """
    if where == "off" or (where == "auto" and (before == LIVE or jax.process_count() > 1)):
        return None  # several processes may not have the same caches: the user must name one
    # Two functions of one name cannot be distinguished, nor two versions of a class: the user must ask.
    own = teacher.forward is not None or not type(augmentation).__module__.startswith("jaxkd.")
    streamed = isinstance(dataset.splits[SPLIT], data.StreamedSplit)
    if where == "auto" and (streamed or (own and before is None)):
        return None
    key = cache_key(teacher, dataset, augmentation, pooled=pooled)
    usual = default_folder(key, teacher, dataset)

    def checked(cache: TeacherCache) -> TeacherCache:
        if before not in (None, LIVE, cache.dtype):
            raise ValueError(f"the run began with a {before} cache, and {cache.folder} holds {cache.dtype}")
        if len(cache) < key.num_examples * augmentation.count:
            cache.locate(wanted_codes(key.num_examples, augmentation, seeds=[seed], num_epochs=num_epochs))
        return cache

    if where == "fill":
        try:
            cache = _with_rows(usual, key, checked)
        except (FileNotFoundError, ValueError):
            cache = TeacherCache.create(usual, key)
        if own and len(cache):
            say(
                f"{cache.folder} has {len(cache):,} views already, of {teacher.name} and {augmentation}: if "
                "their code has changed since, stop, and remove that folder"
            )
        return cache
    try:
        if where != "auto":
            return checked(TeacherCache(place(where), key))
        return _with_rows(usual, key, checked)
    except (OSError, ValueError) as error:
        if where != "auto" or before is not None:
            raise
        if not isinstance(error, FileNotFoundError):
            say(f"{error}. Ignoring it; running the teacher in every step")
        return None
