"""Where training takes the teacher's logits from: the teacher itself, or a cache that fits."""

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
      cache: with a row for every view that the run will see, unless `fill` adds them.
      num_examples: of the training split.
      augmentation: of the view "main".
      seed: the run's.
      pooled: whether the method reads pooled features too.
      fill: called with the codes of each epoch before it (and `stop`); adds the rows that the cache lacks.
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
        """Finds the rows of an epoch's views, after computing those that are absent and may be added.

        Args:
          epoch: from 1.
          stop: asked while computing; if it is true, the epoch cannot be trained on.

        Raises:
          ValueError: some are not there.
        """
        codes = epoch_codes(self._num_examples, self._augmentation, seed=self._seed, epoch=epoch)
        if self._fill is not None:
            self._fill(codes, stop=stop)
            if stop():
                return
        self._rows = self.cache.locate(codes)

    def __call__(self, ids: np.ndarray) -> np.ndarray:
        """The logits `[..., K]`, in the cache's precision, of what examples `ids` `[...]` show in this epoch.

        An id of -1, which stands for no example, gets those of another.
        """
        return self.cache.logits(self._rows[ids])

    def of_batch(self, ids: np.ndarray) -> dict[str, np.ndarray]:
        """What a `Batch` takes of the cache."""
        logits, pooled = self.cache.fetch(self._rows[ids])
        return {"teacher_logits": logits, **({"teacher_pooled": pooled} if self._pooled else {})}


def why_not(task: Task, dataset: data.Dataset) -> str | None:
    """Why no cache can serve a run, in words; None if one can."""
    views = dict(task.augmentations)
    if not task.method.reads:
        return "the method reads nothing of a teacher"
    if more := sorted(set(task.method.reads) - CACHEABLE):
        held = " and ".join(sorted(CACHEABLE))
        return f"the method reads {', '.join(more)} of the teacher, and a cache holds {held}"
    if list(views) != [MAIN]:
        return f"the method has the views {', '.join(views)}, and a cache holds {MAIN} alone"
    if not is_numbered(views[MAIN]):
        return f"the augmentation {views[MAIN]} has outcomes without number"
    if isinstance(dataset.splits[SPLIT], data.StreamedSplit):
        return f"{dataset.name} is streamed, with crops without number"
    return None


def _found(usual: Path, key: CacheKey) -> TeacherCache:
    """The cache in the usual folder; in its absence one beside it that holds more than the key asks for."""
    try:
        return TeacherCache(usual, key)
    except FileNotFoundError:
        start = usual.name.removesuffix(key.digest)
        for folder in sorted(usual.parent.glob("*")):
            if folder.name.startswith(start):
                with contextlib.suppress(FileNotFoundError, ValueError):
                    return TeacherCache(folder, key)
        raise


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
    """Decides where a run takes its teacher's logits from.

    Args:
      where: "auto", "off", "fill" or the folder of a cache.
      teacher: of the run.
      dataset: of the run.
      augmentation: of the run's view "main".
      seed: of the run.
      num_epochs: of the run.
      before: where they came from if the run has begun already, `LIVE` or a cache's precision: "auto" goes
        on with that.
      pooled: whether the method reads pooled features too.
      say: where it is said that a cache was there and is not used.

    Returns:
      The cache to use; None for the teacher itself.

    Raises:
      FileNotFoundError: a cache is named, or was begun with, that does not exist.
      ValueError: likewise, and it does not fit or lacks views.
    """
    if where == "off" or (where == "auto" and (before == LIVE or jax.process_count() > 1)):
        return None  # several processes would have to have the same caches: whoever knows that names one
    if where == "auto" and (
        isinstance(dataset.splits[SPLIT], data.StreamedSplit) or teacher.forward is not None
    ):
        return None  # two functions of one name are not told apart: whoever asks for a cache knows
    key = cache_key(teacher, dataset, augmentation, pooled=pooled)
    usual = default_folder(key, teacher, dataset)
    if where == "fill":
        return TeacherCache.create(usual, key)
    try:
        cache = _found(usual, key) if where == "auto" else TeacherCache(place(where), key)
        if len(cache) < key.num_examples * augmentation.count:
            cache.locate(wanted_codes(key.num_examples, augmentation, seeds=[seed], num_epochs=num_epochs))
    except (FileNotFoundError, ValueError) as error:
        if where != "auto" or before is not None:
            raise
        if not isinstance(error, FileNotFoundError):
            say(f"{error}. Ignoring it; running the teacher in every step")
        return None
    return cache
