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

#include "column_decoder.hpp"
#include "parallel.hpp"

namespace teramind {
namespace {

// 2^16 bins: their counters and the keys of a usual range stay in the second-level cache (1 MiB), and a full section
// has few enough ranges that the place where each is being written stays in the first.
constexpr int kRangeBits = 16;
constexpr std::uint64_t kMinRanges = 64;    // small images: enough ranges to share among threads
constexpr std::uint64_t kMaxRanges = 4096;  // huge ones: wider ranges rather than more of them, while a key holds one
constexpr std::size_t kPiece = 1024;        // transcripts decoded at a time, within the first-level cache
constexpr std::size_t kPointsPerThread = 1 << 15;  // below this a thread costs more than it gains
constexpr std::uint32_t kNoBlock = std::numeric_limits<std::uint32_t>::max();

int choose_range_bits(std::uint64_t bins, int gene_bits) {
  const int fewest = std::bit_width(bins / kMaxRanges);
  const int most = std::bit_width(bins / kMinRanges);
  return std::min(std::max(std::min(kRangeBits, most), fewest), 32 - gene_bits);
}

// Blocks so large that linking them costs nothing, and so small that the unfilled ones cost at most a byte a point.
int choose_block_bits(std::size_t points, std::size_t ranges) {
  return std::clamp(static_cast<int>(std::bit_width(points / ranges / 4)) - 1, 2, 8);
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
    : layout_{grid.bins(), grid.columns(), genes, std::bit_width(genes - 1), 0},
      threads_(std::clamp<std::size_t>(size / kPointsPerThread, 1, threads)) {
  layout_.range_bits = choose_range_bits(layout_.bins, layout_.gene_bits);
  block_bits_ = choose_block_bits(size / threads_, layout_.ranges());
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
  const std::size_t size = last - first;
  const std::size_t ranges = layout_.ranges();
  const std::size_t block_mask = (std::size_t{1} << block_bits_) - 1;
  // A range leaves at most one block unfilled, and no range without a key has one.
  const std::size_t blocks = std::min(size, (size >> block_bits_) + ranges);
  share.keys = RawBuffer<std::uint32_t>(blocks << block_bits_);
  share.previous_block.reserve(blocks);
  share.end.assign(ranges, 0);
  const auto append = [&](std::uint32_t range, std::uint32_t key) {
    std::uint64_t end = share.end[range];
    if ((end & block_mask) == 0) {  // its last block is full, or it has none
      const std::size_t block = share.previous_block.size();
      share.previous_block.push_back(end == 0 ? kNoBlock : static_cast<std::uint32_t>((end - 1) >> block_bits_));
      end = block << block_bits_;
    }
    share.keys[end] = key;
    share.end[range] = end + 1;
  };

  const Divider bin_divider(grid.bin_size);
  const Divider unit(1);
  const std::uint64_t bin_mask = (std::uint64_t{1} << layout_.range_bits) - 1;
  std::array<std::uint32_t, kPiece> row, column, id, range, key;
  for (std::size_t start = first; start < last; start += kPiece) {
    const std::size_t count = std::min(kPiece, last - start);
    decode_cells(y, start, count, grid.height, bin_divider, row.data());
    decode_cells(x, start, count, grid.width, bin_divider, column.data());
    decode_cells(gene, start, count, layout_.genes, unit, id.data());
    std::size_t inside = 0;
    std::size_t points_outside = 0;
    for (std::size_t i = 0; i < count; ++i) {
      const std::uint64_t bin = std::uint64_t{row[i]} * layout_.grid_columns + column[i];
      range[inside] = static_cast<std::uint32_t>(bin >> layout_.range_bits);
      key[inside] = static_cast<std::uint32_t>((bin & bin_mask) << layout_.gene_bits) | id[i];
      const std::uint32_t point_outside = (row[i] | column[i]) >> 31;
      points_outside += point_outside;
      inside += 1 - (point_outside | (id[i] >> 31));
    }
    for (std::size_t i = 0; i < inside; ++i) append(range[i], key[i]);
    share.kept += inside;
    share.dropped.points += points_outside;
    share.dropped.genes += count - inside - points_outside;
  }
}

// One thread's workshop: takes ranges, sorts their keys, writes their stretch of the CSR arrays.
struct BinnedTranscripts::RangeSorter {
  explicit RangeSorter(const BinnedTranscripts& transcripts)
      : source(transcripts),
        layout(transcripts.layout_),
        gene_mask((std::uint32_t{1} << layout.gene_bits) - 1),
        bin_place(std::size_t{1} << layout.range_bits),
        gene_place(layout.genes) {}

  // Calls visit(first, last) for each block of keys of a range.
  template <class Visit>
  void for_each_block(std::size_t range, const Visit& visit) const {
    const std::uint64_t block_mask = (std::uint64_t{1} << source.block_bits_) - 1;
    for (const Share& share : source.shares_) {
      std::uint64_t end = share.end[range];
      while (end != 0) {
        const std::uint64_t first = (end - 1) & ~block_mask;
        visit(share.keys.data() + first, share.keys.data() + end);
        const std::uint32_t previous = share.previous_block[first >> source.block_bits_];
        end = previous == kNoBlock ? 0 : (std::uint64_t{previous} + 1) << source.block_bits_;
      }
    }
  }

  // Sorts the keys of a range into `sorted` and returns their number.
  std::uint32_t sort(std::size_t range) {
    std::uint64_t size = 0;
    for_each_block(range, [&](const std::uint32_t* first, const std::uint32_t* last) { size += last - first; });
    if (size == 0) return 0;
    sorted.reserve_discarding(size);
    by_gene.reserve_discarding(size + 1);
    std::fill(bin_place.begin(), bin_place.end(), 0);
    std::fill(gene_place.begin(), gene_place.end(), 0);
    const int gene_bits = layout.gene_bits;
    for_each_block(range, [&](const std::uint32_t* first, const std::uint32_t* last) {
      for (; first != last; ++first) {
        ++bin_place[bin_of(*first)];
        ++gene_place[*first & gene_mask];
      }
    });
    (void)gene_bits;
    std::exclusive_scan(gene_place.begin(), gene_place.end(), gene_place.begin(), 0U);
    for_each_block(range, [&](const std::uint32_t* first, const std::uint32_t* last) {
      for (; first != last; ++first) by_gene[gene_place[*first & gene_mask]++] = *first;
    });
    std::exclusive_scan(bin_place.begin(), bin_place.end(), bin_place.begin(), 0U);
    for (std::uint64_t i = 0; i < size; ++i) sorted[bin_place[bin_of(by_gene[i])]++] = by_gene[i];
    return static_cast<std::uint32_t>(size);
  }

  [[nodiscard]] std::size_t bin_of(std::uint32_t key) const {
    return static_cast<std::size_t>(std::uint64_t{key} >> layout.gene_bits);
  }

  // Keeps one of equal keys in `sorted`, where each began in `by_gene` (one past the last included), and where each
  // bin that holds one ends in `bin_place` (0 for the others). Returns the number of different keys.
  std::uint32_t merge_equal(std::uint32_t size) {
    std::fill(bin_place.begin(), bin_place.end(), 0);
    if (size == 0) return 0;
    std::uint32_t distinct = 0;
    std::uint32_t previous = ~sorted[0];
    for (std::uint32_t i = 0; i < size; ++i) {  // writes first and decides later whether it counts: no branch to miss
      const std::uint32_t key = sorted[i];
      sorted[distinct] = key;
      by_gene[distinct] = i;
      distinct += key != previous ? 1 : 0;
      bin_place[bin_of(key)] = distinct;
      previous = key;
    }
    by_gene[distinct] = size;
    return distinct;
  }

  template <class Index>
  void write(std::size_t range, std::uint64_t offset, std::uint32_t distinct, Index* row_pointer, Index* columns,
             std::uint16_t* counts) {
    const std::uint64_t first_bin = std::uint64_t{range} << layout.range_bits;
    const std::size_t bins = static_cast<std::size_t>(std::min<std::uint64_t>(bin_place.size(), layout.bins - first_bin));
    const auto base = static_cast<Index>(offset);
    std::uint32_t end = 0;
    for (std::size_t bin = 0; bin < bins; ++bin) {
      end = std::max(end, bin_place[bin]);
      row_pointer[first_bin + 1 + bin] = base + static_cast<Index>(end);
    }
    std::uint32_t largest = 0;
    for (std::uint32_t i = 0; i < distinct; ++i) {
      columns[offset + i] = static_cast<Index>(sorted[i] & gene_mask);
      const std::uint32_t count = by_gene[i + 1] - by_gene[i];
      counts[offset + i] = static_cast<std::uint16_t>(count);
      largest = std::max(largest, count);
    }
    if (largest > std::numeric_limits<std::uint16_t>::max() && !overflow) note_overflow(first_bin, distinct);
  }

  void note_overflow(std::uint64_t first_bin, std::uint32_t distinct) {
    for (std::uint32_t i = 0; i < distinct && !overflow; ++i) {
      const std::uint32_t count = by_gene[i + 1] - by_gene[i];
      if (count > std::numeric_limits<std::uint16_t>::max()) {
        overflow.emplace(first_bin + bin_of(sorted[i]), sorted[i] & gene_mask, count);
      }
    }
  }

  const BinnedTranscripts& source;
  const Layout& layout;
  std::uint32_t gene_mask;
  std::vector<std::uint32_t> bin_place;
  std::vector<std::uint32_t> gene_place;
  RawBuffer<std::uint32_t> sorted;
  RawBuffer<std::uint32_t> by_gene;
  std::optional<CountOverflow> overflow;
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
        const std::uint32_t distinct = sorter.merge_equal(sorter.sort(range));
        const std::optional<std::uint64_t> offset = written.add(range, distinct);
        if (!offset) return;
        sorter.write(range, *offset, distinct, row_pointer, columns, counts);
      }
      const std::lock_guard lock(mutex);
      if (sorter.overflow && (!overflow || sorter.overflow->bin < overflow->bin)) overflow = sorter.overflow;
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
