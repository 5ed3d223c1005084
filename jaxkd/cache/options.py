"""Options of `jaxkd cache`."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Literal

from jaxkd.data.options import DataOptions
from jaxkd.options import option


@dataclasses.dataclass(frozen=True, kw_only=True)
class CacheConfig(DataOptions):
    """Precompute a teacher's logits, for all views of the training images or for those of some epochs.

    Training finds them by itself. Stop it with Ctrl-C; the same command resumes it.
    """

    teacher: str = option(main=True)
    """Teacher: its folder, the folder of the run that trained it, or a name in the zoo."""
    teacher_size: int | None = None
    """Resize the teacher's images to this height and width, in pixels, as for training."""
    epochs: int | None = option(default=None, main=True)
    """Only the views of runs with this many epochs. Default: all views."""
    seed: int = option(default=0, main=True)
    """Seed of the run, if --epochs is given."""
    seeds: int = option(default=1, main=True)
    """Number of runs, with seeds --seed, --seed + 1 and so on, if --epochs is given."""
    out: Path | None = option(default=None, main=True)
    """Folder of the cache. Default: where training looks for it, in ~/.cache/jaxkd/logits."""
    dtype: Literal["float16", "bfloat16", "float32"] | None = None
    """Precision of the stored logits. Default: that of the existing cache, or float16."""
    pooled: bool = False
    """Store pooled features too, for methods that read them (crd, rkd, itrd, ...)."""
    batch_size: int = 256
    """Views per step, over all devices."""
    devices: int | None = None
    """Number of local devices. Default: all."""

    def check(self) -> None:
        """See `Options`."""
        super().check()
        self.require(1, "epochs", "seeds", "batch_size", "devices", "teacher_size")
        self.require(0, "seed")
        if self.epochs is None and (self.seed, self.seeds) != (0, 1):
            raise ValueError("--seed and --seeds select views only together with --epochs: pass it too")
