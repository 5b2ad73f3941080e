// teramind._core.TileSchedule: units and rectangles travel as tuples of integers; teramind/engine/plan.py names them.
#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <algorithm>
#include <array>
#include <chrono>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <optional>
#include <span>
#include <stdexcept>
#include <tuple>
#include <utility>
#include <vector>

#include "schedule.hpp"

namespace py = pybind11;

namespace teramind {
void bind_schedule(py::module_& module);

namespace {

using Three = std::array<std::int32_t, 3>;
using Four = std::array<std::int32_t, 4>;
using Box = std::array<std::int64_t, 4>;
using PieceTuple = std::tuple<std::int32_t, std::int32_t, std::int32_t, std::int32_t, Box, Box, Box>;
using Bytes = py::array_t<std::uint8_t, py::array::c_style | py::array::forcecast>;
using Counts = py::array_t<std::uint16_t, py::array::c_style | py::array::forcecast>;
using WithoutGil = py::call_guard<py::gil_scoped_release>;

Four pack(const Unit& unit) { return {unit.window, unit.row, unit.column, unit.step}; }
Four pack(const TileVersion& tile) { return {tile.window, tile.row, tile.column, tile.version}; }
Three pack(const Tile& tile) { return {tile.window, tile.row, tile.column}; }
Box pack(const Rectangle& box) { return {box.y0, box.y1, box.x0, box.x1}; }
Rectangle unpack(const Box& box) { return {box[0], box[1], box[2], box[3]}; }

template <class Item>
auto pack(const std::vector<Item>& items) {
  std::vector<decltype(pack(items.front()))> packed;
  packed.reserve(items.size());
  for (const auto& item : items) packed.push_back(pack(item));
  return packed;
}

Unit checked_unit(const TileGraph& graph, const Four& unit) {
  const auto [window, row, column, step] = unit;
  const auto& geometry = graph.geometry();
  if (window < 0 || window >= graph.windows() || row < 0 || row >= geometry.rows() || column < 0 ||
      column >= geometry.columns() || step < 0 || step >= geometry.units(row, column)) {
    throw std::out_of_range("no such unit");
  }
  return {window, row, column, step};
}

std::vector<Unit> checked_units(Schedule& schedule, const std::vector<Four>& units) {
  return schedule.locked([&](const TileGraph& graph) {
    std::vector<Unit> checked;
    for (const auto& unit : units) checked.push_back(checked_unit(graph, unit));
    return checked;
  });
}

// Wait in short pieces: between them Python may deliver a signal, such as the one that asks for a snapshot.
template <class Attempt>
void wait(std::optional<double> timeout, Attempt attempt) {
  using Clock = Schedule::Clock;
  constexpr auto kPiece = std::chrono::milliseconds(100);
  const auto begin = Clock::now();
  while (true) {
    auto deadline = Clock::now() + kPiece;
    bool last = false;
    if (timeout) {
      const auto end = begin + std::chrono::duration_cast<Clock::duration>(std::chrono::duration<double>(*timeout));
      last = end <= deadline;
      deadline = std::min(end, deadline);
    }
    bool success = false;
    {
      const py::gil_scoped_release release;
      success = attempt(deadline);
    }
    if (success || last) return;
    if (PyErr_CheckSignals() != 0) throw py::error_already_set();
  }
}

std::vector<Four> claim(Schedule& schedule, std::size_t limit, std::optional<double> timeout) {
  Schedule::Claim result{{}, false};
  wait(timeout, [&](Schedule::Clock::time_point deadline) {
    result = schedule.claim(limit, deadline);
    return result.ended || !result.units.empty();
  });
  return pack(result.units);
}

bool pause(Schedule& schedule, std::optional<double> timeout) {
  bool drained = false;
  schedule.pause();
  wait(timeout, [&](Schedule::Clock::time_point deadline) { return drained = schedule.drained(deadline); });
  return drained;
}

std::vector<PieceTuple> input(Schedule& schedule, const Four& unit) {
  std::vector<PieceTuple> pieces;
  for (const auto& piece :
       schedule.locked([&](const TileGraph& graph) { return graph.input(checked_unit(graph, unit)); })) {
    pieces.emplace_back(static_cast<std::int32_t>(piece.kind), piece.row, piece.column, unit[3], pack(piece.plane),
                        pack(piece.local), pack(piece.target));
  }
  return pieces;
}

TileGraph make_graph(const Extent& extent, std::int32_t windows, const std::optional<Bytes>& skip,
                     const std::optional<Counts>& completed) {
  TileGeometry geometry(extent);
  const auto tiles = static_cast<py::ssize_t>(geometry.rows()) * geometry.columns() * windows;
  if ((skip && skip->size() != tiles) || (completed && completed->size() != tiles)) {
    throw std::invalid_argument("an array is not windows x rows x columns");
  }
  std::span<const std::uint8_t> skipped;
  if (skip) skipped = {skip->data(), static_cast<std::size_t>(tiles)};
  TileGraph graph(std::move(geometry), windows, skipped);
  if (completed) graph.restore({completed->data(), static_cast<std::size_t>(tiles)});
  return graph;
}

Counts completed(Schedule& schedule) {
  const auto shape = schedule.locked([](const TileGraph& graph) {
    return Three{graph.windows(), graph.geometry().rows(), graph.geometry().columns()};
  });
  Counts counts(std::vector<py::ssize_t>(shape.begin(), shape.end()));
  const std::span<std::uint16_t> out(counts.mutable_data(), static_cast<std::size_t>(counts.size()));
  schedule.locked([&](const TileGraph& graph) { graph.completed(out); });
  return counts;
}

}  // namespace

void bind_schedule(py::module_& module) {
  py::class_<Schedule>(module, "TileSchedule", "The tile graph; see teramind.engine.plan.TilePlan.")
      .def(py::init([](std::int64_t height, std::int64_t width, std::int64_t patch, std::int64_t tile,
                       std::int32_t steps, std::int32_t windows, const Box& bounds, const Box& output,
                       const std::optional<Bytes>& skip, const std::optional<Counts>& counts) {
             const Extent extent{height, width, patch, tile, steps, unpack(bounds), unpack(output)};
             return std::make_unique<Schedule>(make_graph(extent, windows, skip, counts));
           }),
           py::kw_only(), py::arg("height"), py::arg("width"), py::arg("patch"), py::arg("tile"), py::arg("steps"),
           py::arg("windows"), py::arg("bounds"), py::arg("output"), py::arg("skip"), py::arg("completed"))
      .def("claim", &claim, py::arg("limit"), py::arg("timeout"))
      .def(
          "complete",
          [](Schedule& schedule, const std::vector<Four>& units) {
            const auto events = schedule.complete(checked_units(schedule, units));
            return std::pair{pack(events.freed), pack(events.finished)};
          },
          py::arg("units"), WithoutGil())
      .def(
          "release",
          [](Schedule& schedule, const std::vector<Four>& units) { schedule.release(checked_units(schedule, units)); },
          py::arg("units"), WithoutGil())
      .def("pause", &pause, py::arg("timeout"))
      .def("resume", &Schedule::resume, WithoutGil())
      .def("close", &Schedule::close, WithoutGil())
      .def(
          "peek",
          [](Schedule& schedule, std::size_t limit, std::size_t batch) {
            return pack(schedule.locked([&](TileGraph& graph) { return graph.peek(limit, batch); }));
          },
          py::arg("limit"), py::arg("batch"), WithoutGil())
      .def(
          "held",
          [](Schedule& schedule) {
            return pack(schedule.locked([](const TileGraph& graph) { return graph.held(); }));
          },
          WithoutGil())
      .def("completed", &completed)
      .def("input", &input, py::arg("unit"))
      .def(
          "tile",
          [](Schedule& schedule, std::int32_t row, std::int32_t column) {
            return schedule.locked([&](const TileGraph& graph) {
              const auto& geometry = graph.geometry();
              if (row < 0 || row >= geometry.rows() || column < 0 || column >= geometry.columns()) {
                throw std::out_of_range("no such tile");
              }
              return pack(geometry.tile(row, column));
            });
          },
          py::arg("row"), py::arg("column"))
      .def(
          "compute",
          [](Schedule& schedule, const Four& unit) {
            return schedule.locked([&](const TileGraph& graph) {
              const auto checked = checked_unit(graph, unit);
              return pack(graph.geometry().compute(checked.row, checked.column, checked.step));
            });
          },
          py::arg("unit"))
      .def(
          "active",
          [](Schedule& schedule, std::int32_t step) {
            return schedule.locked([&](const TileGraph& graph) { return pack(graph.geometry().active(step)); });
          },
          py::arg("step"))
      .def(
          "counts",
          [](Schedule& schedule) {
            return schedule.locked([](const TileGraph& graph) {
              return std::tuple{graph.remaining(), graph.in_flight(), graph.live(), graph.peak_live()};
            });
          },
          WithoutGil())
      .def(
          "simulate",
          [](Schedule& schedule, const std::vector<double>& seconds, std::size_t batch) {
            // On a copy, so that workers do not wait for a long simulation.
            const auto graph = schedule.locked([](const TileGraph& live) { return live; });
            const auto result = graph.simulate(seconds, batch);
            return std::tuple{result.makespan, result.busy, result.units, result.peak_live};
          },
          py::arg("seconds"), py::arg("batch"), WithoutGil());
}
}  // namespace teramind
