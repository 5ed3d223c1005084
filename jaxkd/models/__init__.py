"""Student and teacher networks: in Flax Linen by name, or from any module.

Images come in as normalised floats, NHWC; an `Outputs` with logits and named features comes out.  Modules
carry the names that the PyTorch code of the field gives them (`layer1.0.conv1` is `layer1_0/conv1`), so
that weights can be exchanged by one rule (`jaxkd.models.torch_names`).
"""

from jaxkd._extras import require

require("train", "flax")

from jaxkd.models.adapters import Like, as_network, from_linen, from_nnx  # noqa: E402
from jaxkd.models.folding import Folded, fold  # noqa: E402
from jaxkd.models.layers import Outputs  # noqa: E402
from jaxkd.models.network import Evaluated, Forward, Network, normalize  # noqa: E402
from jaxkd.models.registry import create, initialize, names  # noqa: E402
from jaxkd.models.summary import Summary, describe  # noqa: E402

__all__ = [
    "Evaluated",
    "Folded",
    "Forward",
    "Like",
    "Network",
    "Outputs",
    "Summary",
    "as_network",
    "create",
    "describe",
    "fold",
    "from_linen",
    "from_nnx",
    "initialize",
    "names",
    "normalize",
]
