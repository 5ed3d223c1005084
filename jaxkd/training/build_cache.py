"""What the command `cache` does: a teacher's logits on the views of a data set's training images."""

from __future__ import annotations

import time

from jaxkd import data, teachers
from jaxkd.config import CacheConfig
from jaxkd.signals import Stopped, StopRequest
from jaxkd.training.loop import Say
from jaxkd.training.parallel import choose_devices
from jaxkd.training.precompute import (
    SPLIT,
    Filler,
    FillProgress,
    cache_key,
    cacheable_split,
    default_folder,
    wanted_codes,
)
from jaxkd.training.run import frozen_network, print_line, require_fit
from jaxkd.training.teacher_cache import TeacherCache


def build_cache(
    config: CacheConfig, dataset: data.Dataset | None = None, *, say: Say = print_line
) -> TeacherCache:
    """Makes a cache, or adds to the one that is there.

    Args:
      config: what to do.
      dataset: instead of loading `config.data`.
      say: where progress goes.

    Returns:
      The cache, open.

    Raises:
      Stopped: a signal came; what was computed is kept, and the same call goes on.
      ValueError: the teacher does not fit the data, or the folder holds another cache.
      FloatingPointError: the teacher's logits are not finite.
    """
    devices = choose_devices(config.devices)
    teacher = teachers.load(config.teacher)
    dataset = dataset or data.load(config.data, data_dir=config.data_dir, splits=(SPLIT,))
    require_fit(teacher, dataset)
    view = dataset.view.changed(config.crop_padding, config.flip)
    key = cache_key(teacher, dataset, view)
    cache = TeacherCache.create(config.out or default_folder(key, teacher, dataset), key, config.dtype)
    seeds = range(config.seed, config.seed + config.seeds)
    codes = wanted_codes(key.num_examples, view, seeds=seeds, num_epochs=config.epochs)
    missing = len(cache.missing(codes))
    size = missing * cache.row_bytes / 2**20
    say(
        f"{cache.folder}: {len(codes):,} of all {key.num_examples * view.count:,} views of "
        f"{key.num_examples:,} images are wanted, {len(codes) - missing:,} of them are there; {size:.1f} MiB "
        f"in {cache.dtype} to come, by {teacher.name} on {len(devices)} x {devices[0].device_kind}"
    )
    filler = Filler(
        cache,
        frozen_network(teacher),
        teacher.frozen[1],
        cacheable_split(dataset),
        view,
        devices=devices,
        batch_size=config.batch_size,
    )
    start = time.monotonic()
    with StopRequest() as stop:
        done = filler(codes, progress=FillProgress(say), stop=lambda: stop.signal_name is not None)
    if len(cache.missing(codes)):
        raise Stopped(
            f"stopped by {stop.signal_name} after {done:,} of {missing:,} views; they are kept in "
            f"{cache.folder}, and the same command goes on from there"
        )
    rate = done / max(time.monotonic() - start, 1e-9)
    say(f"{cache.folder}: done, {len(cache):,} views, {cache.num_bytes / 2**20:.1f} MiB, {rate:.0f} views/s")
    return cache
