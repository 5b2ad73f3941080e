#include <pybind11/pybind11.h>

#include "rasterize.hpp"

namespace teramind {
void bind_rasterize(pybind11::module_& module);

void bind_rasterize(pybind11::module_& /*module*/) {}
}  // namespace teramind
