#include "rasterize.hpp"

#include <algorithm>
#include <array>
#include <atomic>
#include <bit>
#include <condition_variable>
#include <limits>
#include <mutex>
#include <numeric>
#include <optional>
#include <utility>

#include "column_decoder.hpp"
#include "parallel.hpp"

namespace teramind {
namespace {

// 2^16 bins: their counters and the keys of a usual range stay in the second-level cache (1 MiB), and a full section
// has few enough ranges that the place where each is being written stays in the first.
constexpr int kRangeBits = 16;
constexpr std::uint64_t kMinRanges = 64;    // small images: enough ranges to share among threads
constexpr std::uint64_t kMaxRanges = 4096;  // huge ones: wider ranges rather than more of them, while a key holds one
constexpr std::size_t kPiece = 256;         // transcripts decoded at a time, in a corner of the first-level cache
constexpr std::size_t kPrefetch = 4 * kPiece;  // how far ahead input is asked for: a sixth of the first pass
constexpr std::size_t kPointsPerThread = 1 << 15;  // below this a thread costs more than it gains

// std::bit_width, whose type differs between versions of the standard library.
int bit_width(std::uint64_t value) { return 64 - std::countl_zero(value); }

int choose_range_bits(std::uint64_t bins, int gene_bits) {
  const int fewest = bit_width(bins / kMaxRanges);
  const int most = bit_width(bins / kMinRanges);
  return std::min(std::max(std::min(kRangeBits, most), fewest), 32 - gene_bits);
}

// Hands out 0, 1, 2, ... once each, and tells whoever finished one the sum of all that came before it.
class OrderedSum {
 public:
  [[nodiscard]] std::size_t take() { return next_.fetch_add(1, std::memory_order_relaxed); }

  // Waits until all before `ticket` have been added, adds `amount` and returns the sum before it; nothing if cancelled.
  // Cannot block for ever: tickets are taken in order and the one waited for is held by a thread at work.
  [[nodiscard]] std::optional<std::uint64_t> add(std::size_t ticket, std::uint64_t amount) {
    std::unique_lock lock(mutex_);
    changed_.wait(lock, [&] { return cancelled_ || added_ == ticket; });
    if (cancelled_) return std::nullopt;
    ++added_;
    const std::uint64_t before = sum_;
    sum_ += amount;
    lock.unlock();
    changed_.notify_all();
    return before;
  }

  void cancel() {
    {
      const std::lock_guard lock(mutex_);
      cancelled_ = true;
    }
    changed_.notify_all();
  }

  [[nodiscard]] std::uint64_t sum() const { return sum_; }

 private:
  std::atomic<std::size_t> next_{0};
  std::mutex mutex_;
  std::condition_variable changed_;
  std::size_t added_ = 0;
  std::uint64_t sum_ = 0;
  bool cancelled_ = false;
};

}  // namespace

BinnedTranscripts::BinnedTranscripts(Column x, Column y, Column gene, std::size_t size, BinGrid grid,
                                     std::uint32_t genes, std::size_t threads)
    : layout_{grid.bins(), genes, bit_width(genes - 1), 0},
      threads_(std::clamp<std::size_t>(size / kPointsPerThread, 1, threads)) {
  layout_.range_bits = choose_range_bits(layout_.bins, layout_.gene_bits);
  shares_.resize(threads_);
  run_parallel(threads_, [&](std::size_t worker) {
    read_share(shares_[worker], x, y, gene, size * worker / threads_, size * (worker + 1) / threads_, grid);
  });
  for (const Share& share : shares_) {
    kept_ += share.kept;
    dropped_.points += share.dropped.points;
    dropped_.genes += share.dropped.genes;
  }
}

void BinnedTranscripts::read_share(Share& share, Column x, Column y, Column gene, std::size_t first, std::size_t last,
                                   BinGrid grid) const {
  share.keys = KeyLists(last - first, layout_.ranges());
  const std::uint32_t bin_mask = (std::uint32_t{1} << layout_.range_bits) - 1;
  const auto grid_columns = static_cast<std::uint32_t>(grid.columns());
  std::array<std::uint32_t, kPiece> row, column, id, range, key;
  for (std::size_t start = first; start < last; start += kPiece) {
    const std::size_t count = std::min(kPiece, last - start);
    const std::size_t ahead = std::min(start + kPrefetch, last);
    for (const Column& values : {x, y, gene}) prefetch(values, ahead, std::min(kPiece, last - ahead));
    decode_cells(y, start, count, grid.height, grid.bin_size, row.data());
    decode_cells(x, start, count, grid.width, grid.bin_size, column.data());
    decode_cells(gene, start, count, layout_.genes, 1, id.data());
    std::uint32_t points_outside = 0;
    std::uint32_t outside = 0;
    for (std::size_t i = 0; i < count; ++i) {
      const std::uint32_t bin = row[i] * grid_columns + column[i];  // of no meaning, and not used, if outside
      range[i] = bin >> layout_.range_bits;
      key[i] = ((bin & bin_mask) << layout_.gene_bits) | id[i];
      const std::uint32_t position = row[i] | column[i];
      points_outside += position >> 31;
      outside += (position | id[i]) >> 31;
    }
    if (outside == 0) {
      for (std::size_t i = 0; i < count; ++i) share.keys.append(range[i], key[i]);
    } else {
      for (std::size_t i = 0; i < count; ++i) {
        if (((row[i] | column[i] | id[i]) >> 31) == 0) share.keys.append(range[i], key[i]);
      }
    }
    share.kept += count - outside;
    share.dropped.points += points_outside;
    share.dropped.genes += outside - points_outside;
  }
}

// One thread's workshop: sorts the keys of a range and writes its stretch of the CSR arrays.
class BinnedTranscripts::RangeSorter {
 public:
  explicit RangeSorter(const BinnedTranscripts& source)
      : source_(source),
        layout_(source.layout_),
        gene_mask_((std::uint32_t{1} << layout_.gene_bits) - 1),
        row_end_(std::size_t{1} << layout_.range_bits) {
    const int key_bits = layout_.range_bits + layout_.gene_bits;
    digits_ = std::max(1, (key_bits + kMaxDigitBits - 1) / kMaxDigitBits);
    digit_bits_ = (key_bits + digits_ - 1) / digits_;
    places_.resize(static_cast<std::size_t>(digits_) << digit_bits_);
  }

  // Sorts and merges the keys of a range and returns how many different ones it has: the counts it will store.
  std::uint32_t prepare(std::size_t range) {
    distinct_ = 0;
    const std::size_t size = count_keys(range);
    if (size != 0) {
      sorted_.reserve_discarding(size + 1);
      other_.reserve_discarding(size + 1);
      sort(range, size);
      merge_equal(static_cast<std::uint32_t>(size));
    }
    return distinct_;
  }

  // Writes what was prepared. The stored counts of the range begin at `offset`.
  template <class Index>
  void write(std::size_t range, std::uint64_t offset, Index* row_pointer, Index* columns, std::uint16_t* counts) {
    const std::uint64_t first_bin = std::uint64_t{range} << layout_.range_bits;
    write_row_pointer(offset, std::min<std::uint64_t>(row_end_.size(), layout_.bins - first_bin),
                      row_pointer + first_bin + 1);
    columns += offset;
    counts += offset;
    std::uint32_t any_bit = 0;  // of all counts: cheaper than their maximum, and tells as well
    for (std::uint32_t i = 0; i < distinct_; ++i) {
      const std::uint32_t count = other_[i + 1] - other_[i];
      columns[i] = static_cast<Index>(sorted_[i] & gene_mask_);
      counts[i] = static_cast<std::uint16_t>(count);
      any_bit |= count;
    }
    if (any_bit > kMaxCount && !overflow_) note_overflow(first_bin);
  }

  // The first count too large for 16 bits among the ranges written.
  [[nodiscard]] const std::optional<CountOverflow>& overflow() const { return overflow_; }

 private:
  static constexpr int kMaxDigitBits = 13;  // 8192 places, of which those in use stay in the first-level cache
  static constexpr std::uint32_t kMaxCount = std::numeric_limits<std::uint16_t>::max();

  [[nodiscard]] std::uint32_t bin_of(std::uint32_t key) const { return key >> layout_.gene_bits; }

  [[nodiscard]] std::size_t count_keys(std::size_t range) const {
    std::size_t size = 0;
    for (const Share& share : source_.shares_) {
      share.keys.for_each_block(range, [&](const std::uint32_t* first, const std::uint32_t* last) {
        size += static_cast<std::size_t>(last - first);
      });
    }
    return size;
  }

  template <class Visit>
  void for_each_key(std::size_t range, const Visit& visit) const {
    for (const Share& share : source_.shares_) {
      share.keys.for_each_block(range, [&](const std::uint32_t* first, const std::uint32_t* last) {
        std::for_each(first, last, visit);
      });
    }
  }

  // A digit of a key and its table of places. Held by value in loops that store keys, so that no store can be taken
  // for a change of shift or mask.
  struct Digit {
    int shift;
    std::uint32_t mask;
    std::uint32_t* places;  // by value of the digit: how often it occurs, later where the next such key goes

    std::uint32_t& place_of(std::uint32_t key) const { return places[(key >> shift) & mask]; }
    void start() const { std::exclusive_scan(places, places + mask + 1, places, 0U); }
  };

  [[nodiscard]] Digit digit(int i) {
    return {i * digit_bits_, (std::uint32_t{1} << digit_bits_) - 1,
            places_.data() + (static_cast<std::size_t>(i) << digit_bits_)};
  }

  // Least-significant-digit radix sort of the keys of a range into `sorted_`.
  void sort(std::size_t range, std::size_t size) {
    std::fill(places_.begin(), places_.end(), 0);
    for_each_key(range, [first = digit(0)](std::uint32_t key) { ++first.place_of(key); });
    for (int i = 0; i < digits_; ++i) {
      const Digit current = digit(i);
      current.start();
      const auto move = [current, to = other_.data()](std::uint32_t key) { to[current.place_of(key)++] = key; };
      // The next digit is counted on the way; the last has none.
      const auto move_and_count = [move, next = digit(i + 1)](std::uint32_t key) {
        move(key);
        ++next.place_of(key);
      };
      const auto take_all = [&](const auto& visit) {
        if (i == 0) {
          for_each_key(range, visit);
        } else {
          std::for_each_n(sorted_.data(), size, visit);
        }
      };
      if (i + 1 == digits_) {
        take_all(move);
      } else {
        take_all(move_and_count);
      }
      std::swap(sorted_, other_);
    }
  }

  // Keeps one of equal keys in `sorted_`, where each begins in `other_` (one past the last included), and where each
  // bin that holds one ends in `row_end_` (0 for the others).
  void merge_equal(std::uint32_t size) {
    std::fill(row_end_.begin(), row_end_.end(), 0);
    std::uint32_t* const keys = sorted_.data();
    std::uint32_t* const starts = other_.data();
    std::uint32_t* const row_end = row_end_.data();
    const int gene_bits = layout_.gene_bits;
    std::uint32_t distinct = 0;
    std::uint32_t previous = ~keys[0];
    for (std::uint32_t i = 0; i < size; ++i) {  // writes first and decides later whether it counts: no branch to miss
      const std::uint32_t key = keys[i];
      keys[distinct] = key;
      starts[distinct] = i;
      distinct += key != previous ? 1 : 0;
      row_end[key >> gene_bits] = distinct;
      previous = key;
    }
    starts[distinct] = size;
    distinct_ = distinct;
  }

  template <class Index>
  void write_row_pointer(std::uint64_t offset, std::size_t bins, Index* row_pointer) const {
    const auto base = static_cast<Index>(offset);
    if (distinct_ == 0) {
      std::fill_n(row_pointer, bins, base);
      return;
    }
    std::uint32_t end = 0;
    for (std::size_t bin = 0; bin < bins; ++bin) {
      end = std::max(end, row_end_[bin]);
      row_pointer[bin] = base + static_cast<Index>(end);
    }
  }

  void note_overflow(std::uint64_t first_bin) {
    for (std::uint32_t i = 0; !overflow_; ++i) {
      const std::uint32_t count = other_[i + 1] - other_[i];
      if (count > kMaxCount) overflow_.emplace(first_bin + bin_of(sorted_[i]), sorted_[i] & gene_mask_, count);
    }
  }

  const BinnedTranscripts& source_;
  const Layout& layout_;
  std::uint32_t gene_mask_;
  int digits_;
  int digit_bits_;
  std::vector<std::uint32_t> places_;  // by digit, then by its value: how often, later where the next one goes
  std::vector<std::uint32_t> row_end_;
  RawBuffer<std::uint32_t> sorted_;
  RawBuffer<std::uint32_t> other_;
  std::uint32_t distinct_ = 0;
  std::optional<CountOverflow> overflow_;
};

template <class Index>
std::uint64_t BinnedTranscripts::write_csr(Index* row_pointer, Index* columns, std::uint16_t* counts) const {
  OrderedSum written;
  std::mutex mutex;
  std::optional<CountOverflow> overflow;
  row_pointer[0] = 0;
  run_parallel(threads_, [&](std::size_t) {
    try {
      RangeSorter sorter(*this);
      for (std::size_t range = written.take(); range < layout_.ranges(); range = written.take()) {
        const std::optional<std::uint64_t> offset = written.add(range, sorter.prepare(range));
        if (!offset) return;
        sorter.write(range, *offset, row_pointer, columns, counts);
      }
      const std::lock_guard lock(mutex);
      if (sorter.overflow() && (!overflow || sorter.overflow()->bin < overflow->bin)) overflow = sorter.overflow();
    } catch (...) {  // out of memory: the others must not wait for this range
      written.cancel();
      throw;
    }
  });
  if (overflow) throw *overflow;
  return written.sum();
}

template std::uint64_t BinnedTranscripts::write_csr(std::int32_t*, std::int32_t*, std::uint16_t*) const;
template std::uint64_t BinnedTranscripts::write_csr(std::int64_t*, std::int64_t*, std::uint16_t*) const;

}  // namespace teramind
