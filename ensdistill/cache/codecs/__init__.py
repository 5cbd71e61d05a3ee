"""Codecs: how a target becomes the bytes of a record, and comes back. Each file holds one family.

A record holds one sample (one position of a sequence): the hash of its input, then the fields of the codec
with all members side by side, padded to a multiple of 8 bytes.

==========  ==================================  =============================================================
codec       fields (K members, C classes)       error
==========  ==================================  =============================================================
uint8       scale f32 [K], offset f32 [K],      half a step: KL <= R^2 / (520200 T^2), where R is the row's
            codes u8 [K, C]                     range (255 steps; 254 steps with masked classes)
fp16        logits f16 [K, C], row maximum 0    2^-11 relative; clamped below -65504, where softmax is 0
bf16        logits bf16 [K, C], row maximum 0   2^-8 relative
fp32        logits f32 [K, C]                   none
topk-N      tail_log_mass f32,                  the shape of the tail; its mass is exact.
            log_probs f16 [N],                  N ids of ceil(log2 C) bits each
            ids u8 [ceil(N bits / 8)]
counts-N    counts u8 [M],                      none on average: E|p~ - p|^2 = (1 - |p|^2) / N;
            ids u8 [ceil(M bits / 8)]           M = min(N, C)
==========  ==================================  =============================================================

Multi-label members have the same codecs but ``counts-N`` (``labels.py``). Half precision does not shift their
log-odds. The error of ``uint8`` is a sum over labels of at most R^2 / 2080800 each. ``topk-N`` has the N
likeliest labels and the sum of the others' probabilities, which are read as equal. Regression has ``fp32``,
``fp16`` and the affine codes ``affine16`` and ``uint8`` of standardised means and deviations
(``numbers.py``).

The first four hold each member's logits, or (with K = 1) the log-probabilities of their mixture at one
temperature. The last two always hold the mixture. KL bound: if all logits of a row are within e of the stored
ones, up to a shift, then KL(p || p~) <= e^2 / (2 T^2).

A codec outside the package derives from `Codec` and is named by its import path; ``docs/extending.md`` shows
one.
"""

from ensdistill.cache.codecs.base import (
    Batch,
    Codec,
    Encoded,
    Fields,
    largest_share_distance,
    measured_cost,
)
from ensdistill.cache.codecs.comparison import NOISE, Comparison, Tolerance, kl_divergence
from ensdistill.cache.codecs.layout import Layout, record_of
from ensdistill.cache.codecs.registry import (
    BUILT_IN,
    DEFAULT,
    class_paths,
    codec_of,
    is_built_in,
    is_codec_name,
    stored_codec,
)

__all__ = [
    "BUILT_IN",
    "DEFAULT",
    "NOISE",
    "Batch",
    "Codec",
    "Comparison",
    "Encoded",
    "Fields",
    "Layout",
    "Tolerance",
    "class_paths",
    "codec_of",
    "is_built_in",
    "is_codec_name",
    "kl_divergence",
    "largest_share_distance",
    "measured_cost",
    "record_of",
    "stored_codec",
]
