#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <array>
#include <cstddef>
#include <cstdint>

#include "noise.hpp"

namespace py = pybind11;

namespace teramind {
void bind_noise(py::module_& module);

namespace {

using Shape = std::array<std::size_t, 4>;  // stains, slices, height, width

// Binds `fill` as a function that returns a new array of shape (stains, slices, height, width).
template <class Value>
void bind_field(py::module_& module, const char* name,
                void (*fill)(std::uint64_t, const NoiseBox&, std::size_t, Value*)) {
  using namespace py::literals;
  module.def(
      name,
      [fill](std::uint64_t seed, std::uint32_t z0, std::uint32_t y0, std::uint32_t x0, const Shape& shape,
             std::size_t threads) {
        py::array_t<Value> field(shape);
        Value* const values = field.mutable_data();
        const py::gil_scoped_release release;
        fill(seed, {z0, y0, x0, shape[0], shape[1], shape[2], shape[3]}, threads, values);
        return field;
      },
      "seed"_a, "z0"_a, "y0"_a, "x0"_a, "shape"_a, py::kw_only(), "threads"_a);
}

}  // namespace

void bind_noise(py::module_& module) {
  bind_field<std::uint32_t>(module, "philox_words", &philox_words);
  bind_field<float>(module, "noise_field", &noise_field);
}
}  // namespace teramind
