// All of the row kernel for one instruction set. Each needs the one before it.
// clang-format off
#include "simd.h"
#include "../rowmath.h"
#include "../coinmath.h"
#include "targets.h"
#include "softmax.h"
#include "row.h"
#include "row_logits.h"
#include "row_codes.h"
#include "row_gradient.h"
#include "row_sparse.h"
#include "rows.h"
#include "multilabel.h"
