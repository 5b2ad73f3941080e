#include <pybind11/pybind11.h>

#include "noise.hpp"

namespace teramind {
void bind_noise(pybind11::module_& module);

void bind_noise(pybind11::module_& /*module*/) {}
}  // namespace teramind
