"""Where images come from, in which order, and which view of each one an epoch sees.

Images are uint8 NHWC from disk to device; they become floats inside the training step.
"""

from jaxkd._extras import require

require("train", "sklearn", "tensorflow_datasets", "grain", "PIL")

from jaxkd.data.augment import (  # noqa: E402
    Augmentation,
    Compose,
    CropFlip,
    Identity,
    augment,
    outcomes,
    stream_key,
)
from jaxkd.data.datasets import Dataset, Split, from_arrays  # noqa: E402
from jaxkd.data.examples import from_examples  # noqa: E402
from jaxkd.data.named import load, names, require_known, short_name  # noqa: E402
from jaxkd.data.order import epoch_order  # noqa: E402
from jaxkd.data.rand_augment import RandAugment  # noqa: E402
from jaxkd.data.streaming import StreamedSplit  # noqa: E402

__all__ = [
    "Augmentation",
    "Compose",
    "CropFlip",
    "Dataset",
    "Identity",
    "RandAugment",
    "Split",
    "StreamedSplit",
    "augment",
    "epoch_order",
    "from_arrays",
    "from_examples",
    "load",
    "names",
    "outcomes",
    "require_known",
    "short_name",
    "stream_key",
]
