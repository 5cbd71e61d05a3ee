// Where code compiled with -fsanitize=alignment,bounds,... calls when it has found something: a report that ends the launch,
// like all others. (The sanitizer's own library would only print, or end the process.)
#include <cstdint>

#include "shim/engine.h"

namespace {

struct Found {  // how all records of the sanitizer begin
  const char* file;
  uint32_t line, column;
};
struct Type {
  uint16_t kind, info;
  char name[1];
};
struct Mismatch {
  Found found;
  const Type* type;
  unsigned char log_alignment, access;
};

void report(const void* record, const char* what) {
  const auto* found = static_cast<const Found*>(record);
  shim::fail("%s (%s:%u)", what, found->file, found->line);
}

}  // namespace

#define ENSDISTILL_SHIM_REPORT(name, what, ...) \
  extern "C" void __ubsan_handle_##name(const void* record, ##__VA_ARGS__) { report(record, what); }
ENSDISTILL_SHIM_REPORT(out_of_bounds, "out of bounds: an index of an array", uintptr_t)
ENSDISTILL_SHIM_REPORT(add_overflow, "a signed sum overflows", uintptr_t, uintptr_t)
ENSDISTILL_SHIM_REPORT(sub_overflow, "a signed difference overflows", uintptr_t, uintptr_t)
ENSDISTILL_SHIM_REPORT(mul_overflow, "a signed product overflows", uintptr_t, uintptr_t)
ENSDISTILL_SHIM_REPORT(negate_overflow, "a signed negation overflows", uintptr_t)
ENSDISTILL_SHIM_REPORT(divrem_overflow, "a division by zero, or one that overflows", uintptr_t, uintptr_t)
ENSDISTILL_SHIM_REPORT(shift_out_of_bounds, "a shift by more bits than there are", uintptr_t, uintptr_t)

extern "C" void __ubsan_handle_type_mismatch_v1(const Mismatch* record, uintptr_t address) {
  shim::fail("misaligned access: %s at %p needs %d bytes (%s:%u)", record->type->name, reinterpret_cast<void*>(address), 1 << record->log_alignment,
             record->found.file, record->found.line);
}
