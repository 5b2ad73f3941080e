// teramind._core: thin bindings. Buffers in, buffers out, the GIL released around the work.
// Each subject binds itself in a function of its own file, so that this one stays a table.
#include <pybind11/pybind11.h>

namespace teramind {
void bind_noise(pybind11::module_& module);
void bind_rasterize(pybind11::module_& module);
void bind_schedule(pybind11::module_& module);
}  // namespace teramind

PYBIND11_MODULE(_core, module) {
  module.doc() = "The compiled core of teramind.";
  teramind::bind_noise(module);
  teramind::bind_rasterize(module);
  teramind::bind_schedule(module);
}
