#include "dispatch.h"

#include <atomic>
#include <stdexcept>

namespace ensdistill {
namespace {

struct Candidate {
  const Kernels* kernels;
  bool (*runs)();
};

const std::vector<Candidate>& candidates() {
  static const std::vector<Candidate> all{
      {&baseline_kernels, [] { return true; }},
#if defined(__x86_64__)
      {&avx2_kernels, [] { return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma"); }},
      {&avx512_kernels,
       [] {
         return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512vl") &&
                __builtin_cpu_supports("avx512dq");
       }},
#endif
  };
  return all;
}

const Kernels* widest() {
  const Kernels* best = nullptr;
  for (const auto& c : candidates())
    if (c.runs()) best = c.kernels;
  return best;
}

std::atomic<const Kernels*>& active() {
  static std::atomic<const Kernels*> kernels{widest()};
  return kernels;
}

}  // namespace

std::vector<std::string> compiled_instruction_sets() {
  std::vector<std::string> names;
  for (const auto& c : candidates()) names.emplace_back(c.kernels->name);
  return names;
}

std::vector<std::string> runnable_instruction_sets() {
  std::vector<std::string> names;
  for (const auto& c : candidates())
    if (c.runs()) names.emplace_back(c.kernels->name);
  return names;
}

const Kernels& active_kernels() { return *active().load(std::memory_order_relaxed); }

void use_instruction_set(const std::string& name) {
  for (const auto& c : candidates())
    if (c.kernels->name == name && c.runs()) {
      active().store(c.kernels);
      return;
    }
  throw std::invalid_argument("instruction set: '" + name + "' is not compiled in or doesn't run on this machine");
}

}  // namespace ensdistill
