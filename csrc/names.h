// The names of the enums' values, as Python gives them. Free of torch.
#pragma once
#include <string>
#include <vector>

#include "problem.h"

namespace ensdistill {

// Names<E>::all lists the values of the enum E in their order; Names<E>::what is the noun for one of them in messages.
template <class E>
struct Names;

#define ENSDISTILL_NAME(name) #name,
#define ENSDISTILL_NAMES(E, word, LIST)                           \
  template <>                                                     \
  struct Names<E> {                                               \
    static constexpr const char* what = word;                     \
    static constexpr const char* all[] = {LIST(ENSDISTILL_NAME)}; \
  };
ENSDISTILL_NAMES(Element, "element", ENSDISTILL_ELEMENTS)
ENSDISTILL_NAMES(Kind, "kind", ENSDISTILL_KINDS)
ENSDISTILL_NAMES(Combiner, "combiner", ENSDISTILL_COMBINERS)
ENSDISTILL_NAMES(TailMode, "tail_mode", ENSDISTILL_TAIL_MODES)
ENSDISTILL_NAMES(Reduction, "reduction", ENSDISTILL_REDUCTIONS)
#undef ENSDISTILL_NAMES
#undef ENSDISTILL_NAME

template <>
struct Names<Divergence> {
  static constexpr const char* what = "divergence";
  static constexpr const char* all[] = {
#define ENSDISTILL_DIVERGENCE(name, type) #name,
#include "divergences.def"
  };
};

// Sets `value` to the one that is called `name`; false where there is none.
template <class E>
bool find_by_name(const std::string& name, E& value) {
  int i = 0;
  for (const char* known : Names<E>::all) {
    if (name == known) return value = E(i), true;
    ++i;
  }
  return false;
}

template <class E>
std::vector<std::string> names_of() {
  return {std::begin(Names<E>::all), std::end(Names<E>::all)};
}

// The names of the op's arguments in their order.
inline std::vector<std::string> argument_names() {
  return {
      "student",
      "targets",
#define ENSDISTILL_TENSOR(name) #name,
#define ENSDISTILL_CHOICE(type, name) #name,
#define ENSDISTILL_SETTING(type, name) #name,
#include "loss_arguments.def"
  };
}

}  // namespace ensdistill
