// Threads of control on one host thread: each has a stack, and runs until it hands over to another.
#pragma once
#include <cstddef>

namespace shim {

struct Fibre {
  void* stack_pointer = nullptr;  // of one that isn't running; with ucontext, its context
  char* bottom = nullptr;
  size_t size = 0;
  void* fake_stack = nullptr;  // address sanitizer's
};

// Every stack ends in a page that can't be touched, and is kept for the next launch.
class Stacks {
 public:
  // Room for `count` fibres; those there were are lost.
  void reserve(size_t count);
  // A fibre that begins with entry(), on stack number `i`. entry() never returns.
  void prepare(Fibre& fibre, size_t i, void (*entry)());
  ~Stacks();

 private:
  char* memory_ = nullptr;  // one reservation; pages come when they are touched
  size_t count_ = 0;
};

// The stack this is called on, so that fibres can go back to it.
void adopt_current(Fibre& fibre);
// Goes on with `to`. Returns when another fibre hands over to `from`.
void hand_over(Fibre& from, Fibre& to);
// To be called first by entry().
void arrived();

}  // namespace shim
