"""Where images come from, in which order, and which view of each one an epoch sees.

Images are uint8 NHWC from disk to device; they become floats inside the training step.
"""

from jaxkd._extras import require

require("train", "sklearn", "tensorflow_datasets", "grain", "PIL")

from jaxkd.data.datasets import Dataset, Split, from_arrays, load, names  # noqa: E402
from jaxkd.data.order import epoch_order  # noqa: E402
from jaxkd.data.streaming import StreamedSplit  # noqa: E402
from jaxkd.data.views import View, normalize, stream_key, take_views, view_images, view_indices  # noqa: E402

__all__ = [
    "Dataset",
    "Split",
    "StreamedSplit",
    "View",
    "epoch_order",
    "from_arrays",
    "load",
    "names",
    "normalize",
    "stream_key",
    "take_views",
    "view_images",
    "view_indices",
]
