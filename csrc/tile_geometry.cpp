#include "tile_geometry.hpp"

#include <algorithm>
#include <stdexcept>

namespace teramind {
namespace {

constexpr std::int32_t kMostSteps = 0x7FFF;  // counts of steps are kept in 16 bits, with room for marks

// A part of one axis of a unit's input. Tile -1: outside the bounds.
struct Segment {
  std::int64_t start, stop;
  std::int32_t tile;
};

// [start, stop) cut at the bounds [low, high) and at the tiles' borders.
std::vector<Segment> cut(std::int64_t start, std::int64_t stop, std::int64_t low, std::int64_t high,
                         std::int64_t tile) {
  std::vector<Segment> segments;
  while (start < stop) {
    if (start < low) {
      segments.push_back({start, std::min(stop, low), -1});
    } else if (start >= high) {
      segments.push_back({start, stop, -1});
    } else {
      const auto end = std::min({stop, high, (start / tile + 1) * tile});
      segments.push_back({start, end, static_cast<std::int32_t>(start / tile)});
    }
    start = segments.back().stop;
  }
  return segments;
}

std::int32_t tiles_along(std::int64_t length, std::int64_t tile) {
  return static_cast<std::int32_t>((length + tile - 1) / tile);
}

Rectangle moved(const Rectangle& box, std::int64_t y, std::int64_t x) {
  return {box.y0 - y, box.y1 - y, box.x0 - x, box.x1 - x};
}

}  // namespace

TileGeometry::TileGeometry(const Extent& extent)
    : extent_(extent),
      rows_(tiles_along(extent.height, extent.tile)),
      columns_(tiles_along(extent.width, extent.tile)),
      row_units_(static_cast<std::size_t>(rows_)),
      column_units_(static_cast<std::size_t>(columns_)) {
  if (extent.steps < 1 || extent.steps > kMostSteps) throw std::invalid_argument("steps out of range");
  const auto units_along = [&](std::int64_t start, bool vertical) {
    for (std::int32_t step = extent_.steps; step > 0; --step) {
      const auto region = active(step - 1);
      const auto low = vertical ? region.y0 : region.x0;
      const auto high = vertical ? region.y1 : region.x1;
      if (start < high && start + extent_.tile > low) return step;
    }
    return 0;
  };
  for (std::int32_t row = 0; row < rows_; ++row) {
    row_units_[static_cast<std::size_t>(row)] = units_along(row * extent.tile, true);
  }
  for (std::int32_t column = 0; column < columns_; ++column) {
    column_units_[static_cast<std::size_t>(column)] = units_along(column * extent.tile, false);
  }
}

Rectangle TileGeometry::tile(std::int32_t row, std::int32_t column) const {
  const auto y = row * extent_.tile;
  const auto x = column * extent_.tile;
  return {y, std::min(y + extent_.tile, extent_.height), x, std::min(x + extent_.tile, extent_.width)};
}

Rectangle TileGeometry::active(std::int32_t step) const {
  const auto ring = (extent_.steps - 1 - step) * extent_.patch;
  const auto& bounds = extent_.bounds;
  const auto& output = extent_.output;
  return {std::max(output.y0 - ring, bounds.y0), std::min(output.y1 + ring, bounds.y1),
          std::max(output.x0 - ring, bounds.x0), std::min(output.x1 + ring, bounds.x1)};
}

Rectangle TileGeometry::compute(std::int32_t row, std::int32_t column, std::int32_t step) const {
  const auto whole = tile(row, column);
  const auto region = active(step);
  return {std::max(whole.y0, region.y0), std::min(whole.y1, region.y1), std::max(whole.x0, region.x0),
          std::min(whole.x1, region.x1)};
}

std::int32_t TileGeometry::units(std::int32_t row, std::int32_t column) const {
  return std::min(row_units_[static_cast<std::size_t>(row)], column_units_[static_cast<std::size_t>(column)]);
}

std::vector<Piece> TileGeometry::input(const Unit& unit) const {
  const auto core = compute(unit.row, unit.column, unit.step);
  const auto halo = extent_.patch / 2;
  const auto& bounds = extent_.bounds;
  const auto inside = unit.step == 0 ? Piece::Kind::kNoise : Piece::Kind::kState;
  const auto across = cut(core.x0 - halo, core.x1 + halo, bounds.x0, bounds.x1, extent_.tile);
  std::vector<Piece> pieces;
  for (const auto& y : cut(core.y0 - halo, core.y1 + halo, bounds.y0, bounds.y1, extent_.tile)) {
    for (const auto& x : across) {
      const Rectangle plane{y.start, y.stop, x.start, x.stop};
      const auto target = moved(plane, core.y0 - halo, core.x0 - halo);
      if (y.tile < 0 || x.tile < 0) {
        pieces.push_back({Piece::Kind::kConstant, -1, -1, plane, plane, target});
      } else {
        const auto local = moved(plane, y.tile * extent_.tile, x.tile * extent_.tile);
        pieces.push_back({inside, y.tile, x.tile, plane, local, target});
      }
    }
  }
  return pieces;
}

}  // namespace teramind
