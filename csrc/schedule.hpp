// The dependency graph of a run: which tile may take which DDIM step now, what it reads, and what may be forgotten.
//
// A run has `windows` independent planes, each cut into tiles on a grid from (0, 0), and `steps` steps. Unit
// (window, tile, step) computes version step + 1 of the tile from version `step` of itself and of the rim, half a patch
// wide, of its up to eight neighbours. Version 0 is noise: it can be computed anywhere at any time and is never stored.
//
//   TileGraph  what has been done and what may be done next; not thread-safe, copyable
//   Schedule   TileGraph behind one mutex, with waiting, for workers in several threads
#pragma once

#include <chrono>
#include <condition_variable>
#include <cstddef>
#include <cstdint>
#include <mutex>
#include <optional>
#include <set>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include "tile_geometry.hpp"

namespace teramind {

struct Tile {
  std::int32_t window, row, column;
};

struct TileVersion {
  std::int32_t window, row, column, version;
};

// What a completion lets go of.
struct Events {
  std::vector<TileVersion> freed;  // stored versions that no unit will read any more
  std::vector<Tile> finished;      // tiles whose last version is in: they go to the output
};

struct Simulation {
  double makespan;           // of all units left, in the unit of the durations given
  std::vector<double> busy;  // a worker
  std::int64_t units;
  std::int64_t peak_live;
};

// The order of units: deepest step first, then lowest window, then position along the longer side of what is computed,
// then along the shorter. Ready units of step 0 are almost all tiles, so they are no queue but a cursor.
class TileGraph {
 public:
  // `skip`: windows x rows x columns, row-major, or empty; a skipped tile counts as done at every step.
  TileGraph(TileGeometry geometry, std::int32_t windows, std::span<const std::uint8_t> skip);

  // Start from a cut: steps done a tile, in the shape of `skip`. Call once, before anything is claimed.
  // Throws std::invalid_argument where no sequence of completions leads to these counts.
  void restore(std::span<const std::uint16_t> completed);
  void completed(std::span<std::uint16_t> out) const;

  // Up to `limit` units of one window, one step and one compute shape; empty if none is ready.
  std::vector<Unit> claim(std::size_t limit);
  // Both throw std::logic_error for a unit that is not claimed.
  void complete(const Unit& unit, Events* events);
  void release(const Unit& unit);

  // The next `limit` units, if those claimed complete now and one worker goes on with batches of `batch`.
  // The graph is changed on the way and put back.
  std::vector<Unit> peek(std::size_t limit, std::size_t batch);
  // Stored versions that a unit will still read.
  [[nodiscard]] std::vector<TileVersion> held() const;
  // As TileGeometry::input, with skipped tiles as constants.
  [[nodiscard]] std::vector<Piece> input(const Unit& unit) const;
  // Run the units left (claimed ones too) on workers that need seconds[k] for a unit.
  [[nodiscard]] Simulation simulate(std::span<const double> seconds, std::size_t batch) const;

  [[nodiscard]] const TileGeometry& geometry() const { return geometry_; }
  [[nodiscard]] std::int32_t windows() const { return windows_; }
  [[nodiscard]] std::int64_t remaining() const { return progress_.remaining; }
  [[nodiscard]] std::int64_t in_flight() const { return static_cast<std::int64_t>(progress_.in_flight.size()); }
  // Tiles with a buffer: from the claim of their first unit until no unit will read them any more.
  [[nodiscard]] std::int64_t live() const { return progress_.live; }
  [[nodiscard]] std::int64_t peak_live() const { return progress_.peak_live; }

 private:
  // A tile of a window. `cell` counts along the order of positions in a plane with a margin of one tile, so that every
  // tile has eight neighbours at fixed offsets; keys of one step compare in the order of claims.
  using Key = std::uint64_t;
  static Key key(std::uint32_t window, std::uint32_t cell) { return (Key{window} << 32) | cell; }
  static std::uint32_t window_of(Key key) { return static_cast<std::uint32_t>(key >> 32); }
  static std::uint32_t cell_of(Key key) { return static_cast<std::uint32_t>(key); }

  // Everything but the tiles themselves: small, so that peek() can keep a copy.
  struct Progress {
    std::vector<std::vector<Key>> ready;   // a step: a heap. Of step 0 only what was claimed and given back
    std::vector<std::uint32_t> available;  // (step, window): how many of them
    Key cursor = 0;                        // the next unit of step 0 that was never claimed
    std::int32_t deepest = 0;              // no ready unit is deeper
    std::set<std::pair<std::int32_t, Key>> in_flight;  // (-step, key): in the order of claims
    std::int64_t remaining = 0;            // units
    std::int64_t live = 0, peak_live = 0;  // tiles
  };

  class Rehearsal;
  using Journal = std::vector<std::pair<std::size_t, std::uint16_t>>;  // entries of reach_ before they were changed

  [[nodiscard]] Key key_of(std::int32_t window, std::int32_t row, std::int32_t column) const;
  [[nodiscard]] std::pair<std::int32_t, std::int32_t> place_of(std::uint32_t cell) const;
  [[nodiscard]] Unit unit_of(Key key, std::int32_t step) const;
  [[nodiscard]] std::string name(Key key) const;
  [[nodiscard]] std::size_t at(Key key) const { return window_of(key) * plane_ + cell_of(key); }

  [[nodiscard]] std::int32_t done(Key key) const;
  [[nodiscard]] bool all_reached(std::size_t index, std::int32_t version) const;
  [[nodiscard]] bool all_read(Key key, std::int32_t version) const;
  [[nodiscard]] std::int32_t last_read(std::uint32_t cell) const;
  [[nodiscard]] bool has_step_zero() const { return window_of(progress_.cursor) < std::uint32_t(windows_); }
  [[nodiscard]] std::optional<std::int32_t> choose_step(std::size_t limit) const;
  [[nodiscard]] std::optional<Key> front(std::int32_t step) const;

  void pop(std::int32_t step);
  void push(std::int32_t step, Key key);
  void seek_cursor();
  void set_reach(std::size_t index, std::uint16_t value);
  void settle(Key key, Key completed, std::int32_t step, Events* events);
  void free_version(Key key, std::int32_t version, Events* events);
  void finish_claimed();

  TileGeometry geometry_;
  std::int32_t windows_;
  bool rows_are_longer_;
  std::uint32_t stride_;              // cells a line of the shorter side
  std::size_t plane_;                 // cells a window
  std::vector<std::uint16_t> units_;  // a cell: units of its tile
  std::vector<std::uint16_t> reach_;  // (window, cell): steps done, or one of the marks in schedule.cpp
  Progress progress_;
  Journal* journal_ = nullptr;
};

// Thread-safe. A claim waits while nothing is ready and while claims are paused; it returns nothing once all is done,
// the schedule is closed, or its time is up.
class Schedule {
 public:
  using Clock = std::chrono::steady_clock;

  explicit Schedule(TileGraph graph) : graph_(std::move(graph)) {}

  // `ended`: no claim will ever succeed again, as opposed to: not before the deadline.
  struct Claim {
    std::vector<Unit> units;
    bool ended;
  };
  Claim claim(std::size_t limit, Clock::time_point deadline);
  Events complete(std::span<const Unit> units);
  void release(std::span<const Unit> units);

  // Hand out nothing more. pause() returns at once, drained() waits until no unit is in flight.
  void pause();
  bool drained(Clock::time_point deadline);
  void resume();
  void close();

  // Run `function(graph)` under the lock.
  template <class Function>
  auto locked(Function function) {
    const std::lock_guard lock(mutex_);
    return function(graph_);
  }

 private:
  std::mutex mutex_;
  std::condition_variable changed_;
  TileGraph graph_;
  bool paused_ = false;
  bool closed_ = false;
};

}  // namespace teramind
