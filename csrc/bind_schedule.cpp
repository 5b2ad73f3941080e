#include <pybind11/pybind11.h>

#include "schedule.hpp"

namespace teramind {
void bind_schedule(pybind11::module_& module);

void bind_schedule(pybind11::module_& /*module*/) {}
}  // namespace teramind
