// Where the tiles of a plane are and which pixels their units compute and read: rectangles only, nothing that changes.
#pragma once

#include <cstdint>
#include <vector>

namespace teramind {

// Half open, in pixels.
struct Rectangle {
  std::int64_t y0, y1, x0, x1;
};

// The work that takes a tile from version `step` of its state to version `step` + 1.
struct Unit {
  std::int32_t window, row, column, step;
};

// One part of the pixels that a unit reads.
struct Piece {
  enum class Kind : std::int32_t { kConstant, kNoise, kState };

  Kind kind;
  std::int32_t row, column;  // the tile it lies in; -1 outside the bounds
  Rectangle plane;           // where it lies in the plane
  Rectangle local;           // the same, seen from the corner of its tile (of the plane if it has none)
  Rectangle target;          // the same, seen from the corner of the unit's input
};

// Extents of a run, as numbers that the caller has validated: everything is a multiple of `patch`, and tiles are
// multiples of it. The plane is a whole number of patches, so the last tile of a row or column may be narrower.
struct Extent {
  std::int64_t height, width;  // of the plane
  std::int64_t patch, tile;    // sides
  std::int32_t steps;
  Rectangle bounds;  // beyond it the image is a constant
  Rectangle output;  // the part that is wanted; inside the bounds
};

class TileGeometry {
 public:
  explicit TileGeometry(const Extent& extent);

  [[nodiscard]] std::int32_t rows() const { return rows_; }
  [[nodiscard]] std::int32_t columns() const { return columns_; }
  [[nodiscard]] std::int32_t steps() const { return extent_.steps; }

  [[nodiscard]] Rectangle tile(std::int32_t row, std::int32_t column) const;
  // What step `step` has to compute: the output and one ring of patches for each step still to come, within the bounds.
  [[nodiscard]] Rectangle active(std::int32_t step) const;
  // The part of a tile inside active(step), of a unit that exists: step < units(row, column).
  [[nodiscard]] Rectangle compute(std::int32_t row, std::int32_t column, std::int32_t step) const;
  // How many units a tile has. They are those of steps 0 .. n - 1, because the active rectangle only shrinks.
  [[nodiscard]] std::int32_t units(std::int32_t row, std::int32_t column) const;
  // The pixels a unit reads, its compute rectangle and half a patch around it, cut along tile borders and the bounds.
  [[nodiscard]] std::vector<Piece> input(const Unit& unit) const;

 private:
  Extent extent_;
  std::int32_t rows_, columns_;
  std::vector<std::int32_t> row_units_, column_units_;
};

}  // namespace teramind
