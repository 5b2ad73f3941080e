// Transcripts (x, y, gene) to a compressed sparse row (CSR) matrix of counts: a row a bin, a column a gene.
//
// How: one pass over the input turns each transcript into a 32-bit key (bin within its range of bins, gene) and appends
// it to that range's list of blocks; a range has at most 2^16 bins at usual sizes, so that the rest happens in the
// second-level cache. Then each range is taken once, in order: a radix sort of its keys (gene, then bin), run lengths,
// and the finished stretch of row pointer, columns and counts goes out. A range learns where its stretch begins from
// the ranges before it, so nothing is written twice and the result does not depend on the number of threads.
//
// Memory above input and output, for n transcripts: 4 n bytes of keys, at most 1 n of unfilled blocks, and 8 bytes a
// transcript of those ranges that are being sorted at one moment (8 n if they all lie in one): at most 13 n bytes, plus
// about 0.5 MiB a thread (counters of a range's bins, of the genes and of the ranges).
#pragma once

#include <cstddef>
#include <cstdint>
#include <stdexcept>
#include <vector>

#include "raw_buffer.hpp"

namespace teramind {

enum class ElementType { int8, uint8, int16, uint16, int32, uint32, int64, uint64, float32, float64 };

// A strided array of numbers, owned by the caller. The stride is in bytes and may be negative.
struct Column {
  const void* data;
  std::ptrdiff_t stride;
  ElementType type;
};

// An image of height x width px cut into square bins from (0, 0); the last row and column of bins may be partial.
struct BinGrid {
  std::uint32_t height;
  std::uint32_t width;
  std::uint32_t bin_size;

  [[nodiscard]] std::uint64_t rows() const { return (std::uint64_t{height} + bin_size - 1) / bin_size; }
  [[nodiscard]] std::uint64_t columns() const { return (std::uint64_t{width} + bin_size - 1) / bin_size; }
  [[nodiscard]] std::uint64_t bins() const { return rows() * columns(); }
};

// Transcripts left out: outside the image (or NaN), and those inside whose gene is not in the panel.
struct Dropped {
  std::uint64_t points = 0;
  std::uint64_t genes = 0;
};

// A count that 16 bits cannot hold; of several, the first by bin, then by gene.
struct CountOverflow : std::overflow_error {
  CountOverflow(std::uint64_t bin_, std::uint32_t gene_, std::uint32_t count_)
      : std::overflow_error("a count exceeds 65535"), bin(bin_), gene(gene_), count(count_) {}
  std::uint64_t bin;
  std::uint32_t gene;
  std::uint32_t count;
};

// Transcripts sorted into ranges of consecutive bins; the first half of the work, after which the input is no longer
// read (each element is read once, so an input that changes meanwhile gives some result, never a stray write).
class BinnedTranscripts {
 public:
  static constexpr std::uint64_t kMaxPoints = 0xFFFFFFFF;  // positions within a range are 32-bit
  static constexpr std::uint32_t kMaxSide = 0x7FFFFFFF;
  static constexpr std::uint64_t kMaxBins = std::uint64_t{1} << 32;
  static constexpr std::uint32_t kMaxGenes = 1U << 20;

  // `size` elements in each column; 1 <= genes <= kMaxGenes, 1 <= height, width, bin_size <= kMaxSide, at most kMaxBins bins,
  // threads >= 1.
  BinnedTranscripts(Column x, Column y, Column gene, std::size_t size, BinGrid grid, std::uint32_t genes,
                    std::size_t threads);

  [[nodiscard]] std::uint64_t kept() const { return kept_; }
  [[nodiscard]] Dropped dropped() const { return dropped_; }

  // Writes the CSR arrays and returns the number of stored counts. `row_pointer` has bins + 1 elements; `columns` and
  // `counts` have room for kept() elements, of which those beyond the returned number are left untouched.
  // Throws CountOverflow. Index is std::int32_t or std::int64_t and has to hold kept() and genes.
  template <class Index>
  std::uint64_t write_csr(Index* row_pointer, Index* columns, std::uint16_t* counts) const;

 private:
  // What one thread read: keys in blocks, the blocks of a range linked from the last to the first.
  struct Share {
    RawBuffer<std::uint32_t> keys;
    std::vector<std::uint32_t> previous_block;  // by block
    std::vector<std::uint64_t> end;             // by range: where its last block is filled up to; 0 if it has none
    std::uint64_t kept = 0;
    Dropped dropped;
  };
  struct Layout {
    std::uint64_t bins;
    std::uint32_t genes;
    int gene_bits;
    int range_bits;  // a range is 2^range_bits consecutive bins

    [[nodiscard]] std::size_t ranges() const {
      return static_cast<std::size_t>(((bins - 1) >> range_bits) + 1);
    }
  };
  class RangeSorter;

  void read_share(Share& share, Column x, Column y, Column gene, std::size_t first, std::size_t last,
                  BinGrid grid) const;

  Layout layout_;
  std::size_t threads_;
  int block_bits_ = 0;  // a block is 2^block_bits_ keys
  std::vector<Share> shares_;
  std::uint64_t kept_ = 0;
  Dropped dropped_;
};

}  // namespace teramind
