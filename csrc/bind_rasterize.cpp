#include <pybind11/gil_safe_call_once.h>
#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>

#include <cstddef>
#include <cstdint>
#include <exception>
#include <optional>
#include <stdexcept>
#include <string>

#include "rasterize.hpp"

namespace py = pybind11;

namespace teramind {
void bind_rasterize(py::module_& module);

namespace {

ElementType element_type(const py::dtype& type) {
  const auto size = type.itemsize();
  switch (type.kind()) {
    case 'i':
      return size == 1 ? ElementType::int8 : size == 2 ? ElementType::int16 : size == 4 ? ElementType::int32 : ElementType::int64;
    case 'u':
      return size == 1   ? ElementType::uint8
             : size == 2 ? ElementType::uint16
             : size == 4 ? ElementType::uint32
                         : ElementType::uint64;
    case 'f':
      if (size == 4) return ElementType::float32;
      if (size == 8) return ElementType::float64;
      break;
    default:
      break;
  }
  throw py::type_error("unsupported dtype " + std::string(py::str(type)));
}

Column column_of(const py::array& values) {
  return {values.data(), values.strides(0), element_type(values.dtype())};
}

template <class Index>
py::tuple csr_arrays(const BinnedTranscripts& transcripts, const BinGrid& grid) {
  const auto capacity = static_cast<py::ssize_t>(transcripts.kept());
  py::array_t<Index> row_pointer(static_cast<py::ssize_t>(grid.bins() + 1));
  py::array_t<Index> columns(capacity);
  py::array_t<std::uint16_t> counts(capacity);
  Index* const row_pointer_data = row_pointer.mutable_data();
  Index* const columns_data = columns.mutable_data();
  std::uint16_t* const counts_data = counts.mutable_data();
  std::uint64_t stored = 0;
  {
    const py::gil_scoped_release release;
    stored = transcripts.write_csr(row_pointer_data, columns_data, counts_data);
  }
  // Shrinks in place: pages beyond the stored counts were never touched, and go back as address space.
  columns.resize({static_cast<py::ssize_t>(stored)}, false);
  counts.resize({static_cast<py::ssize_t>(stored)}, false);
  return py::make_tuple(counts, columns, row_pointer);
}

py::tuple rasterize(const py::array& x, const py::array& y, const py::array& gene, std::uint32_t height,
                    std::uint32_t width, std::uint32_t genes, std::uint32_t bin_size, std::size_t threads,
                    bool wide_index) {
  const BinGrid grid{height, width, bin_size};
  const Column x_column = column_of(x);
  const Column y_column = column_of(y);
  const Column gene_column = column_of(gene);
  const auto size = static_cast<std::size_t>(x.size());
  std::optional<BinnedTranscripts> transcripts;
  {
    const py::gil_scoped_release release;
    transcripts.emplace(x_column, y_column, gene_column, size, grid, genes, threads);
  }
  const py::tuple arrays = wide_index ? csr_arrays<std::int64_t>(*transcripts, grid)
                                      : csr_arrays<std::int32_t>(*transcripts, grid);
  const Dropped dropped = transcripts->dropped();
  return py::make_tuple(arrays[0], arrays[1], arrays[2], dropped.points, dropped.genes);
}

}  // namespace

void bind_rasterize(py::module_& module) {
  using namespace py::literals;
  PYBIND11_CONSTINIT static py::gil_safe_call_once_and_store<py::object> overflow_type;
  overflow_type.call_once_and_store_result(
      [&]() -> py::object { return py::exception<CountOverflow>(module, "CountOverflowError", PyExc_OverflowError); });
  py::register_local_exception_translator([](std::exception_ptr thrown) {
    try {
      if (thrown) std::rethrow_exception(thrown);
    } catch (const CountOverflow& overflow) {
      py::set_error(overflow_type.get_stored(), py::make_tuple(overflow.bin, overflow.gene, overflow.count));
    }
  });
  module.def("rasterize", &rasterize, "x"_a, "y"_a, "gene"_a, py::kw_only(), "height"_a, "width"_a, "genes"_a,
             "bin_size"_a, "threads"_a, "wide_index"_a);
}
}  // namespace teramind
