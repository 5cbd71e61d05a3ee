#include "fibre.h"

#include <sys/mman.h>

#include <new>

#if defined(__SANITIZE_ADDRESS__)
#include <pthread.h>
#include <sanitizer/asan_interface.h>
#include <sanitizer/common_interface_defs.h>
#endif

// swapcontext() makes a system call for the signal mask each time, which costs more than all else a fibre does between two barriers.
#if defined(__x86_64__) && !defined(ENSDISTILL_SHIM_UCONTEXT)
asm(R"(
.text
.type ensdistill_shim_switch, @function
ensdistill_shim_switch:
  pushq %rbp
  pushq %rbx
  pushq %r12
  pushq %r13
  pushq %r14
  pushq %r15
  movq %rsp, (%rdi)
  movq %rsi, %rsp
  popq %r15
  popq %r14
  popq %r13
  popq %r12
  popq %rbx
  popq %rbp
  ret
.size ensdistill_shim_switch, .-ensdistill_shim_switch
)");
extern "C" __attribute__((visibility("hidden"))) void ensdistill_shim_switch(void** save, void* load);

namespace shim {
namespace {
void begin_with(Fibre& fibre, void (*entry)()) {
  void** top = reinterpret_cast<void**>(fibre.bottom + fibre.size);
  *--top = nullptr;  // where entry() would return to: the end, for debuggers; and the alignment a function expects
  *--top = reinterpret_cast<void*>(entry);
  for (int i = 0; i < 6; ++i) *--top = nullptr;
  fibre.stack_pointer = top;
}
void change(Fibre& from, Fibre& to) { ensdistill_shim_switch(&from.stack_pointer, to.stack_pointer); }
}  // namespace
}  // namespace shim
#else
#include <ucontext.h>

namespace shim {
namespace {
void begin_with(Fibre& fibre, void (*entry)()) {
  auto* context = reinterpret_cast<ucontext_t*>(fibre.bottom);  // at the far end of its own stack
  getcontext(context);
  context->uc_stack.ss_sp = fibre.bottom + sizeof(ucontext_t);
  context->uc_stack.ss_size = fibre.size - sizeof(ucontext_t);
  context->uc_link = nullptr;
  makecontext(context, entry, 0);
  fibre.stack_pointer = context;
}
void change(Fibre& from, Fibre& to) {
  ucontext_t own;
  if (!from.stack_pointer) from.stack_pointer = &own;  // the host's, which prepare() hasn't seen
  const bool host = from.stack_pointer == &own;
  swapcontext(static_cast<ucontext_t*>(from.stack_pointer), static_cast<ucontext_t*>(to.stack_pointer));
  if (host) from.stack_pointer = nullptr;
}
}  // namespace
}  // namespace shim
#endif

namespace shim {
namespace {

constexpr size_t kPage = 4096;
constexpr size_t kStack = 256 * 1024;  // kernels that aren't optimised keep every variable there; pages come when they are touched

}  // namespace

void Stacks::reserve(size_t count) {
  if (count <= count_) return;
  if (memory_) munmap(memory_, count_ * (kStack + kPage));
  count_ = 0;
  void* memory = mmap(nullptr, count * (kStack + kPage), PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (memory == MAP_FAILED) throw std::bad_alloc();
  memory_ = static_cast<char*>(memory), count_ = count;
  for (size_t n = 0; n < count; ++n) mprotect(memory_ + n * (kStack + kPage), kPage, PROT_NONE);
}

void Stacks::prepare(Fibre& fibre, size_t i, void (*entry)()) {
  fibre = {};
  fibre.bottom = memory_ + i * (kStack + kPage) + kPage;
  fibre.size = kStack;
#if defined(__SANITIZE_ADDRESS__)
  __asan_unpoison_memory_region(fibre.bottom, fibre.size);  // the remains of a fibre that never came to its end
#endif
  begin_with(fibre, entry);
}

Stacks::~Stacks() {
  if (memory_) munmap(memory_, count_ * (kStack + kPage));
}

void adopt_current(Fibre& fibre) {
  fibre = {};
#if defined(__SANITIZE_ADDRESS__)
  pthread_attr_t attributes;
  void* bottom = nullptr;
  pthread_getattr_np(pthread_self(), &attributes);
  pthread_attr_getstack(&attributes, &bottom, &fibre.size);
  pthread_attr_destroy(&attributes);
  fibre.bottom = static_cast<char*>(bottom);
#endif
}

void hand_over(Fibre& from, Fibre& to) {
#if defined(__SANITIZE_ADDRESS__)
  __sanitizer_start_switch_fiber(&from.fake_stack, to.bottom, to.size);
#endif
  change(from, to);
#if defined(__SANITIZE_ADDRESS__)
  __sanitizer_finish_switch_fiber(from.fake_stack, nullptr, nullptr);
#endif
}

void arrived() {
#if defined(__SANITIZE_ADDRESS__)
  __sanitizer_finish_switch_fiber(nullptr, nullptr, nullptr);
#endif
}

}  // namespace shim
