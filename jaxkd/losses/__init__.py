"""Distillation losses: pure functions of logits or features, one value per example.

Nothing here depends on networks, optimisers or data.  Only jax, `jaxkd.logits` and `jaxkd.temperature` may be
imported.  The arguments shared by all losses are documented here; each loss documents only its own.  In the
formulas s and t are the logits of student and teacher, `p = softmax(t / T)`, `q = softmax(s / T)`, i counts
examples and k the K classes.

**Arguments**

student, teacher
  Logits, floating, of the same shape `[..., K]`.  The teacher gets no gradient.  Several teachers become one
  with `jaxkd.logits.ensemble`.
temperature
  T: a positive number, an array that broadcasts to `[..., 1]`, or a rule of `jaxkd.temperature` (the
  function, or any with the same signature).  A rule is called with the logits that the softmax sees, after
  `standardize`, classes last.
standardize
  Whether to replace s and t with their z-scores first.  z-scores of constant logits are 0 with a gradient of
  0, so that a head that starts at zero learns nothing from a standardised loss alone.
axis
  The class axis.
where
  Optional mask, boolean or integer; an entry counts where the mask is not 0.  With the rank of the logits it
  broadcasts to them and masks classes; with one axis fewer it masks examples; a vector `[K]` masks classes
  if the logits have three axes or more.  A floating mask of examples holds weights, which multiply the loss.
  Masked entries may have any value, including -inf and NaN.  An example that is masked, or has no class left,
  has loss 0 and gradient 0.
axis_name
  For `jax.shard_map` over the classes: the mesh axis, or axes, over which they are sharded.  Each device
  passes its own classes (and its own part of a class mask), labels index the classes of all devices, and
  every device gets the losses over the whole vocabulary.  A temperature rule is then called with `axis_name=`
  too.  Arrays that are sharded under `jax.jit` need nothing.

**Returns**: one value per example, shape `[...]`, in nats (times squared logit units if T^2 is a factor);
float32, or float64 for float64 logits.  The loss includes the factor T^2, which makes the size of the
gradient independent of T.  The caller reduces; published numbers use the mean over the batch.

**Losses on a whole batch** (`dist`, `dist_intra`, `mlkd`, `skd`, `class_correlation`, `batch_correlation`)
return a scalar.  All leading axes count as one batch, without masked examples; they take no example weights.
Under `jax.shard_map` and `jax.pmap` each device computes its own loss, unless the caller gathers the logits
first; under `jax.jit` the loss is that of the whole batch.

**Raises**: TypeError for logits that are not floating and for a floating class mask; ValueError for shapes
that differ, fewer than two classes, a temperature that is not positive or does not fit, a mask that does not
fit, a rule that `standardize` makes meaningless, and an `axis_name` along which the logits are not sharded.
Under `jit`, where values are not known, a temperature that is not positive and a label that is out of range
make the loss NaN.

**Infinities**: a teacher logit of -inf is a class with probability 0, which adds 0 to a divergence from the
teacher; value and gradient stay finite.  It has no z-score and no maximum of absolute logits: for those, mask
the class with `where=`.  Any other logit that is not finite gives a loss that is not finite.  A large
negative constant (-1e9) in place of a mask is a logit like any other: it dominates standard deviation,
correlation and adaptive temperature.  Mask with `where=` instead.

**Losses on features**, maps `[B, H, W, C]` or vectors `[B, D]`, share the conventions of
`jaxkd.losses.feature`.  `rkd`, `pkt`, `sp`, `cc`, `itrd_correlation` and `itrd_mutual` are scalars for a
whole batch, the others give one value per example.  `nce` takes scores.
"""

from jaxkd.losses.contrastive import nce
from jaxkd.losses.decoupled import dkd, gdkd, normdkd, rld
from jaxkd.losses.feature import (
    attention,
    cc,
    class_activation,
    hcl,
    hint,
    itrd_correlation,
    itrd_mutual,
    nst,
    ofd,
    ofd_margin,
    pkt,
    rkd,
    sp,
    vid,
)
from jaxkd.losses.from_hidden import in_chunks, kd_from_hidden
from jaxkd.losses.labels import cross_entropy, repair
from jaxkd.losses.logit import (
    alpha_beta,
    correlation,
    dtkd,
    entropy_weights,
    jensen_shannon,
    kd,
    mse,
    normkd,
    reverse_kl,
    soft_cross_entropy,
    ttm,
    wttm,
)
from jaxkd.losses.multi_level import batch_correlation, class_correlation, mlkd, skd
from jaxkd.losses.relational import dist, dist_inter, dist_intra
from jaxkd.losses.top_k import kd_top_k
from jaxkd.losses.transport import wkd

__all__ = [
    "alpha_beta",
    "attention",
    "batch_correlation",
    "cc",
    "class_activation",
    "class_correlation",
    "correlation",
    "cross_entropy",
    "dist",
    "dist_inter",
    "dist_intra",
    "dkd",
    "dtkd",
    "entropy_weights",
    "gdkd",
    "hcl",
    "hint",
    "in_chunks",
    "itrd_correlation",
    "itrd_mutual",
    "jensen_shannon",
    "kd",
    "kd_from_hidden",
    "kd_top_k",
    "mlkd",
    "mse",
    "nce",
    "normdkd",
    "normkd",
    "nst",
    "ofd",
    "ofd_margin",
    "pkt",
    "repair",
    "reverse_kl",
    "rkd",
    "rld",
    "skd",
    "soft_cross_entropy",
    "sp",
    "ttm",
    "vid",
    "wkd",
    "wttm",
]
