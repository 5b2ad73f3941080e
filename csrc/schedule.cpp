#include "schedule.hpp"

#include <algorithm>
#include <functional>
#include <limits>
#include <queue>
#include <stdexcept>
#include <string>

namespace teramind {
namespace {

// Values of reach_ beyond any step, so that a plain comparison also says: nothing to wait for here.
constexpr std::uint16_t kOutside = 0xFFFF;   // no unit: beyond what is computed, or the margin
constexpr std::uint16_t kSkipped = 0xFFFE;   // no unit: a constant
constexpr std::uint16_t kComplete = 0xFFFD;  // all its units are done

bool same_shape(const Rectangle& a, const Rectangle& b) {
  return a.y1 - a.y0 == b.y1 - b.y0 && a.x1 - a.x0 == b.x1 - b.x0;
}

}  // namespace

TileGraph::TileGraph(TileGeometry geometry, std::int32_t windows, std::span<const std::uint8_t> skip)
    : geometry_(std::move(geometry)), windows_(windows) {
  const auto region = geometry_.active(0);
  rows_are_longer_ = region.y1 - region.y0 >= region.x1 - region.x0;
  const auto rows = geometry_.rows();
  const auto columns = geometry_.columns();
  stride_ = static_cast<std::uint32_t>((rows_are_longer_ ? columns : rows) + 2);
  plane_ = static_cast<std::size_t>(stride_) * static_cast<std::size_t>((rows_are_longer_ ? rows : columns) + 2);
  if (plane_ > std::numeric_limits<std::uint32_t>::max()) throw std::invalid_argument("too many tiles");

  units_.assign(plane_, 0);
  reach_.assign(plane_ * static_cast<std::size_t>(windows), kOutside);
  std::size_t entry = 0;
  for (std::int32_t window = 0; window < windows; ++window) {
    for (std::int32_t row = 0; row < rows; ++row) {
      for (std::int32_t column = 0; column < columns; ++column, ++entry) {
        const auto tile = key_of(window, row, column);
        const auto units = geometry_.units(row, column);
        units_[cell_of(tile)] = static_cast<std::uint16_t>(units);
        if (!skip.empty() && skip[entry] != 0) {
          reach_[at(tile)] = kSkipped;
        } else if (units > 0) {
          reach_[at(tile)] = 0;
          progress_.remaining += units;
        }
      }
    }
  }
  progress_.ready.resize(static_cast<std::size_t>(geometry_.steps()));
  progress_.available.assign(static_cast<std::size_t>(geometry_.steps()) * static_cast<std::size_t>(windows), 0);
  seek_cursor();
}

TileGraph::Key TileGraph::key_of(std::int32_t window, std::int32_t row, std::int32_t column) const {
  const auto along = static_cast<std::uint32_t>(rows_are_longer_ ? row : column) + 1;
  const auto across = static_cast<std::uint32_t>(rows_are_longer_ ? column : row) + 1;
  return key(static_cast<std::uint32_t>(window), along * stride_ + across);
}

std::pair<std::int32_t, std::int32_t> TileGraph::place_of(std::uint32_t cell) const {
  const auto along = static_cast<std::int32_t>(cell / stride_) - 1;
  const auto across = static_cast<std::int32_t>(cell % stride_) - 1;
  return rows_are_longer_ ? std::pair{along, across} : std::pair{across, along};
}

Unit TileGraph::unit_of(Key key, std::int32_t step) const {
  const auto [row, column] = place_of(cell_of(key));
  return {static_cast<std::int32_t>(window_of(key)), row, column, step};
}

std::string TileGraph::name(Key key) const {
  const auto [row, column] = place_of(cell_of(key));
  return "the tile in row " + std::to_string(row) + ", column " + std::to_string(column) + " of window " +
         std::to_string(window_of(key));
}

std::int32_t TileGraph::done(Key key) const {
  const auto reach = reach_[at(key)];
  return reach < kComplete ? reach : units_[cell_of(key)];
}

// The last version that a unit may read: that after the last step goes to the output and no further.
std::int32_t TileGraph::last_read(std::uint32_t cell) const {
  return std::min<std::int32_t>(units_[cell], geometry_.steps() - 1);
}

// Whether a tile and its neighbours have all completed `version` steps, or have nothing (more) to do.
bool TileGraph::all_reached(std::size_t index, std::int32_t version) const {
  for (const auto line : {index - stride_, index, index + stride_}) {
    if (reach_[line - 1] < version || reach_[line] < version || reach_[line + 1] < version) return false;
  }
  return true;
}

// Whether all units that read `version` of a tile are done. Where a tile's own next unit waits for its neighbours,
// all_reached() says the same: a neighbour that has no unit `version` is then complete.
bool TileGraph::all_read(Key key, std::int32_t version) const {
  for (const auto line : {key - stride_, key, key + stride_}) {
    for (const auto near : {line - 1, line, line + 1}) {
      if (reach_[at(near)] <= version && units_[cell_of(near)] > version) return false;
    }
  }
  return true;
}

void TileGraph::set_reach(std::size_t index, std::uint16_t value) {
  if (journal_ != nullptr) journal_->emplace_back(index, reach_[index]);
  reach_[index] = value;
}

// Move on to the next tile that no one has claimed; claims go along the cursor, so it never has to go back.
void TileGraph::seek_cursor() {
  auto window = window_of(progress_.cursor);
  std::size_t cell = cell_of(progress_.cursor);
  for (; window < static_cast<std::uint32_t>(windows_); ++window, cell = 0) {
    const auto* const plane = reach_.data() + window * plane_;
    cell = static_cast<std::size_t>(std::find(plane + cell, plane + plane_, 0) - plane);
    if (cell < plane_) break;
  }
  progress_.cursor = key(window, static_cast<std::uint32_t>(window < static_cast<std::uint32_t>(windows_) ? cell : 0));
}

// ------------------------------------------------------------------------------------------------- claim and complete

std::optional<TileGraph::Key> TileGraph::front(std::int32_t step) const {
  const auto& heap = progress_.ready[static_cast<std::size_t>(step)];
  if (!heap.empty()) return heap.front();
  if (step == 0 && has_step_zero()) return progress_.cursor;
  return std::nullopt;
}

void TileGraph::push(std::int32_t step, Key key) {
  auto& heap = progress_.ready[static_cast<std::size_t>(step)];
  heap.push_back(key);
  std::push_heap(heap.begin(), heap.end(), std::greater<>{});
  ++progress_.available[static_cast<std::size_t>(step * windows_) + window_of(key)];
  progress_.deepest = std::max(progress_.deepest, step);
}

void TileGraph::pop(std::int32_t step) {
  auto& heap = progress_.ready[static_cast<std::size_t>(step)];
  if (heap.empty()) {
    ++progress_.cursor;
    seek_cursor();
    return;
  }
  --progress_.available[static_cast<std::size_t>(step * windows_) + window_of(heap.front())];
  std::pop_heap(heap.begin(), heap.end(), std::greater<>{});
  heap.pop_back();
  while (progress_.deepest > 0 && progress_.ready[static_cast<std::size_t>(progress_.deepest)].empty()) {
    --progress_.deepest;
  }
}

// The deepest step with a full batch. Going strictly by depth would hand out one unit at a time: a tile's next step is
// ready long before its neighbours' are. Once a window has no step 0 left to fill its batches from, smaller ones do.
// Counted are units of any shape, so that the narrow tiles at the plane's end, one a line, are not left behind.
std::optional<std::int32_t> TileGraph::choose_step(std::size_t limit) const {
  for (const bool partial : {false, true}) {
    for (auto step = progress_.deepest; step > 0; --step) {
      const auto& heap = progress_.ready[static_cast<std::size_t>(step)];
      if (heap.empty()) continue;
      const auto window = window_of(heap.front());
      if (partial ? window < window_of(progress_.cursor)
                  : progress_.available[static_cast<std::size_t>(step * windows_) + window] >= limit) {
        return step;
      }
    }
  }
  return front(0) ? std::optional{0} : std::nullopt;
}

std::vector<Unit> TileGraph::claim(std::size_t limit) {
  std::vector<Unit> units;
  const auto step = choose_step(limit);
  if (!step) return units;
  Rectangle shape{};
  while (units.size() < limit) {
    const auto next = front(*step);
    if (!next) break;
    const auto unit = unit_of(*next, *step);
    if (limit > 1) {
      const auto box = geometry_.compute(unit.row, unit.column, unit.step);
      if (units.empty()) shape = box;
      if (!units.empty() && (unit.window != units.front().window || !same_shape(box, shape))) break;
    }
    pop(*step);
    progress_.in_flight.emplace(-*step, *next);
    if (*step == 0) progress_.peak_live = std::max(progress_.peak_live, ++progress_.live);
    units.push_back(unit);
  }
  return units;
}

void TileGraph::release(const Unit& unit) {
  const auto tile = key_of(unit.window, unit.row, unit.column);
  if (progress_.in_flight.erase({-unit.step, tile}) == 0) throw std::logic_error("released a unit not claimed");
  if (unit.step == 0) --progress_.live;
  push(unit.step, tile);
}

void TileGraph::complete(const Unit& unit, Events* events) {
  const auto tile = key_of(unit.window, unit.row, unit.column);
  if (progress_.in_flight.erase({-unit.step, tile}) == 0) throw std::logic_error("completed a unit not claimed");
  --progress_.remaining;
  const auto version = unit.step + 1;
  set_reach(at(tile), version == units_[cell_of(tile)] ? kComplete : static_cast<std::uint16_t>(version));
  if (version == geometry_.steps() && events != nullptr) {
    events->finished.push_back({unit.window, unit.row, unit.column});
  }
  for (const auto line : {tile - stride_, tile, tile + stride_}) {
    for (const auto near : {line - 1, line, line + 1}) settle(near, tile, unit.step, events);
  }
}

// `key` is next to `completed` (or the same), which has just completed `step` and may have been the last to wait for.
// The condition for the next unit of `key`, that all around have read its version `step`, is also that of dropping it.
void TileGraph::settle(Key key, Key completed, std::int32_t step, Events* events) {
  const auto index = at(key);
  const auto reach = reach_[index];
  const auto version = step + 1;
  if (reach == version) {
    if (!all_reached(index, version)) return;
    push(version, key);
    free_version(key, step, events);
  } else if (reach == kComplete) {
    const std::int32_t units = units_[cell_of(key)];
    if (units >= step && all_read(key, step)) free_version(key, step, events);
    // The last version of a tile that is context only may have no reader at all, where the tiles ahead are skipped.
    if (units == version && units < geometry_.steps() && key == completed && all_read(key, version)) {
      free_version(key, version, events);
    }
  }
}

void TileGraph::free_version(Key key, std::int32_t version, Events* events) {
  if (version == last_read(cell_of(key))) --progress_.live;
  if (version == 0 || events == nullptr) return;
  const auto [row, column] = place_of(cell_of(key));
  events->freed.push_back({static_cast<std::int32_t>(window_of(key)), row, column, version});
}

// ---------------------------------------------------------------------------------------------- snapshot and foresight

void TileGraph::completed(std::span<std::uint16_t> out) const {
  std::size_t entry = 0;
  for (std::int32_t window = 0; window < windows_; ++window) {
    for (std::int32_t row = 0; row < geometry_.rows(); ++row) {
      for (std::int32_t column = 0; column < geometry_.columns(); ++column, ++entry) {
        out[entry] = static_cast<std::uint16_t>(done(key_of(window, row, column)));
      }
    }
  }
}

void TileGraph::restore(std::span<const std::uint16_t> completed) {
  const auto for_each = [&](auto&& visit) {
    std::size_t entry = 0;
    for (std::int32_t window = 0; window < windows_; ++window) {
      for (std::int32_t row = 0; row < geometry_.rows(); ++row) {
        for (std::int32_t column = 0; column < geometry_.columns(); ++column, ++entry) {
          visit(key_of(window, row, column), completed[entry]);
        }
      }
    }
  };
  for_each([&](Key tile, std::uint16_t steps) {
    const auto units = units_[cell_of(tile)];
    auto& reach = reach_[at(tile)];
    if (steps > units || (reach >= kComplete && steps != units)) {
      throw std::invalid_argument(name(tile) + " has completed " + std::to_string(steps) + " of " +
                                  std::to_string(units) + " steps" + (reach == kSkipped ? ", but is skipped" : ""));
    }
    if (reach >= kComplete) return;
    reach = steps == units ? kComplete : steps;
    progress_.remaining -= steps;
  });
  for_each([&](Key tile, std::uint16_t steps) {
    const auto index = at(tile);
    const auto reach = reach_[index];
    if (reach == kSkipped || steps == 0) return;
    if (!all_reached(index, steps - 1)) {
      throw std::invalid_argument(name(tile) + " has completed " + std::to_string(steps) +
                                  " steps, two more than a neighbour");
    }
    if (reach != kComplete && all_reached(index, steps)) push(steps, tile);
    if (reach != kComplete || !all_read(tile, last_read(cell_of(tile)))) ++progress_.live;
  });
  progress_.peak_live = progress_.live;
  seek_cursor();
}

std::vector<TileVersion> TileGraph::held() const {
  std::vector<TileVersion> versions;
  for (std::int32_t window = 0; window < windows_; ++window) {
    for (std::size_t cell = 0; cell < plane_; ++cell) {
      const auto tile = key(static_cast<std::uint32_t>(window), static_cast<std::uint32_t>(cell));
      const auto reach = reach_[at(tile)];
      if (reach == kOutside || reach == kSkipped || reach == 0) continue;
      const auto newest = done(tile);
      for (auto version = std::max(newest - 1, 1); version <= std::min(newest, last_read(cell_of(tile))); ++version) {
        if (all_read(tile, version)) continue;
        const auto [row, column] = place_of(cell_of(tile));
        versions.push_back({window, row, column, version});
      }
    }
  }
  return versions;
}

std::vector<Piece> TileGraph::input(const Unit& unit) const {
  auto pieces = geometry_.input(unit);
  for (auto& piece : pieces) {
    if (piece.row >= 0 && reach_[at(key_of(unit.window, piece.row, piece.column))] == kSkipped) {
      piece.kind = Piece::Kind::kConstant;
    }
  }
  return pieces;
}

// From here to the end of its life whatever is done to a graph is only rehearsed.
class TileGraph::Rehearsal {
 public:
  explicit Rehearsal(TileGraph& graph) : graph_(graph), progress_(graph.progress_) { graph_.journal_ = &journal_; }
  ~Rehearsal() {
    graph_.journal_ = nullptr;
    graph_.progress_ = std::move(progress_);
    for (auto entry = journal_.rbegin(); entry != journal_.rend(); ++entry) {
      graph_.reach_[entry->first] = entry->second;
    }
  }
  Rehearsal(const Rehearsal&) = delete;
  Rehearsal& operator=(const Rehearsal&) = delete;

 private:
  TileGraph& graph_;
  Progress progress_;
  Journal journal_;
};

void TileGraph::finish_claimed() {
  const auto claimed = progress_.in_flight;
  for (const auto& [depth, tile] : claimed) complete(unit_of(tile, -depth), nullptr);
}

std::vector<Unit> TileGraph::peek(std::size_t limit, std::size_t batch) {
  const Rehearsal rehearsal(*this);
  std::vector<Unit> next;
  while (next.size() < limit) {
    finish_claimed();
    const auto units = claim(batch);
    if (units.empty()) break;
    next.insert(next.end(), units.begin(), units.end());
  }
  next.resize(std::min(next.size(), limit));
  return next;
}

Simulation TileGraph::simulate(std::span<const double> seconds, std::size_t batch) const {
  auto graph = *this;
  while (!graph.progress_.in_flight.empty()) {
    const auto [depth, tile] = *graph.progress_.in_flight.begin();
    graph.release(graph.unit_of(tile, -depth));
  }
  graph.progress_.peak_live = graph.progress_.live;
  Simulation result{0.0, std::vector<double>(seconds.size(), 0.0), graph.remaining(), 0};
  std::vector<std::vector<Unit>> work(seconds.size());
  std::set<std::size_t> idle;
  for (std::size_t worker = 0; worker < seconds.size(); ++worker) idle.insert(worker);
  using Done = std::pair<double, std::size_t>;
  std::priority_queue<Done, std::vector<Done>, std::greater<>> running;
  while (true) {
    while (!idle.empty()) {
      const auto worker = *idle.begin();
      work[worker] = graph.claim(batch);
      if (work[worker].empty()) break;
      const auto duration = seconds[worker] * static_cast<double>(work[worker].size());
      result.busy[worker] += duration;
      running.emplace(result.makespan + duration, worker);
      idle.erase(idle.begin());
    }
    if (running.empty()) break;
    result.makespan = running.top().first;
    while (!running.empty() && running.top().first == result.makespan) {
      const auto worker = running.top().second;
      running.pop();
      for (const auto& unit : work[worker]) graph.complete(unit, nullptr);
      idle.insert(worker);
    }
  }
  result.peak_live = graph.peak_live();
  return result;
}

// ---------------------------------------------------------------------------------------------------------- threads

Schedule::Claim Schedule::claim(std::size_t limit, Clock::time_point deadline) {
  std::unique_lock lock(mutex_);
  Claim result{{}, false};
  changed_.wait_until(lock, deadline, [&] {
    result.ended = closed_ || graph_.remaining() == 0;
    if (!result.ended && !paused_) result.units = graph_.claim(limit);
    return result.ended || !result.units.empty();
  });
  return result;
}

Events Schedule::complete(std::span<const Unit> units) {
  Events events;
  {
    const std::lock_guard lock(mutex_);
    for (const auto& unit : units) graph_.complete(unit, &events);
  }
  changed_.notify_all();
  return events;
}

void Schedule::release(std::span<const Unit> units) {
  {
    const std::lock_guard lock(mutex_);
    for (const auto& unit : units) graph_.release(unit);
  }
  changed_.notify_all();
}

void Schedule::pause() {
  const std::lock_guard lock(mutex_);
  paused_ = true;
}

bool Schedule::drained(Clock::time_point deadline) {
  std::unique_lock lock(mutex_);
  return changed_.wait_until(lock, deadline, [&] { return graph_.in_flight() == 0; });
}

void Schedule::resume() {
  {
    const std::lock_guard lock(mutex_);
    paused_ = false;
  }
  changed_.notify_all();
}

void Schedule::close() {
  {
    const std::lock_guard lock(mutex_);
    closed_ = true;
  }
  changed_.notify_all();
}

}  // namespace teramind
