"""The command `cache`: a teacher's logits on the views of a dataset's training images."""

from __future__ import annotations

import time
from typing import Any

from jaxkd import data, teachers
from jaxkd.cache.compute import (
    SPLIT,
    Filler,
    FillProgress,
    cache_key,
    cacheable_split,
    default_folder,
    wanted_codes,
)
from jaxkd.cache.options import CacheConfig
from jaxkd.cache.store import TeacherCache
from jaxkd.data.augment import is_numbered
from jaxkd.devices import choose_devices
from jaxkd.progress import Say, print_line
from jaxkd.signals import Stopped, StopRequest


def build_cache(
    config: CacheConfig, dataset: data.Dataset | None = None, *, say: Say = print_line
) -> TeacherCache:
    """Builds a cache, or adds to an existing one.

    Args:
      config: the options.
      dataset: used instead of loading `config.data`.
      say: callback for progress lines.

    Returns:
      The open cache.

    Raises:
      Stopped: a signal arrived; the computed rows are kept, and the same call resumes.
      ValueError: the teacher does not fit the data, or the folder holds another cache.
      FloatingPointError: the teacher's logits are not finite.
    """
    devices = choose_devices(config.devices)
    teacher = teachers.load(config.teacher)
    if config.teacher_size is not None:
        teacher = teacher.at_size(config.teacher_size)
    dataset = config.load((SPLIT,), given=dataset)
    teacher.require_fit(dataset)
    augmentation: Any = config.augmentation(dataset)
    if not is_numbered(augmentation):
        raise ValueError(
            f"no cache can hold {augmentation}: its outcomes cannot be enumerated; train with --cache off"
        )
    key = cache_key(teacher, dataset, augmentation, pooled=config.pooled)
    cache = TeacherCache.create(config.out or default_folder(key, teacher, dataset), key, config.dtype)
    seeds = range(config.seed, config.seed + config.seeds)
    codes = wanted_codes(key.num_examples, augmentation, seeds=seeds, num_epochs=config.epochs)
    missing = len(cache.missing(codes))
    size = missing * cache.row_bytes / 2**20
    say(
        f"{cache.folder}: {len(codes):,} of all {key.num_examples * augmentation.count:,} views of "
        f"{key.num_examples:,} images requested, {len(codes) - missing:,} of them exist; {size:.1f} MiB in "
        f"{cache.dtype} to compute, with {teacher.name} on {len(devices)} x {devices[0].device_kind}"
    )
    filler = Filler(
        cache,
        *teacher.frozen,
        cacheable_split(dataset),
        augmentation,
        devices=devices,
        batch_size=config.batch_size,
    )
    start = time.monotonic()
    with StopRequest() as stop:
        done = filler(codes, progress=FillProgress(say), stop=lambda: stop.signal_name is not None)
    if len(cache.missing(codes)):
        raise Stopped(
            f"stopped by {stop.signal_name} after {done:,} of {missing:,} views; they are kept in "
            f"{cache.folder}, and the same command resumes from there"
        )
    rate = done / max(time.monotonic() - start, 1e-9)
    say(f"{cache.folder}: done, {len(cache):,} views, {cache.num_bytes / 2**20:.1f} MiB, {rate:.0f} views/s")
    return cache
