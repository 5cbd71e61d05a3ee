"""Legal arguments of distillation_loss, of which a test changes one at a time."""

import torch
from closed_forms import make_codes, make_counts, make_logits, make_top_k

STUDENT, TARGETS, CODES = (
    make_logits(5, 10, seed=0),
    make_logits(3, 5, 10, seed=1),
    make_codes(3, 5, 10, seed=1),
)
LABELS = torch.arange(5)
LOG_P = torch.log_softmax(TARGETS, -1)
TOP, COUNTS = make_top_k(5, 10, 3, seed=1), make_counts(5, 10, 8, seed=1)
NAN, INF = float("nan"), float("inf")
FLOATS = "float64, float32, bfloat16, float16"
NO_GRADIENT = "requires a gradient, and gradients flow to the student only"
HARD = {"labels": LABELS, "alpha": 0.5}
