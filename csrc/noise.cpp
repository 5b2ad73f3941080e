#include "noise.hpp"

#include <algorithm>
#include <array>
#include <bit>
#include <cmath>
#include <numbers>

#include "parallel.hpp"

namespace teramind {
namespace {

constexpr std::size_t kGroup = 4;          // pixels of one Philox output
constexpr std::size_t kGroups = 128;       // outputs computed together: long SIMD loops, all within the first-level cache
constexpr std::size_t kValuesPerThread = 1 << 16;  // below this a thread costs more than it gains

using Words = std::array<std::array<std::uint32_t, kGroups>, 4>;  // by word, then by group

// The outputs of `count` <= kGroups consecutive groups of a row.
void philox_row(std::uint64_t seed, std::array<std::uint32_t, 4> counter, std::size_t count, Words& words) {
  for (std::size_t i = 0; i < count; ++i) {
    std::uint32_t c0 = counter[0] + static_cast<std::uint32_t>(i);
    std::uint32_t c1 = counter[1];
    std::uint32_t c2 = counter[2];
    std::uint32_t c3 = counter[3];
    auto k0 = static_cast<std::uint32_t>(seed);
    auto k1 = static_cast<std::uint32_t>(seed >> 32);
    for (int round = 0; round < 10; ++round) {
      const std::uint64_t p0 = std::uint64_t{0xD2511F53} * c0;
      const std::uint64_t p1 = std::uint64_t{0xCD9E8D57} * c2;
      c0 = static_cast<std::uint32_t>(p1 >> 32) ^ c1 ^ k0;
      c1 = static_cast<std::uint32_t>(p1);
      c2 = static_cast<std::uint32_t>(p0 >> 32) ^ c3 ^ k1;
      c3 = static_cast<std::uint32_t>(p0);
      k0 += 0x9E3779B9;
      k1 += 0xBB67AE85;
    }
    words[0][i] = c0;
    words[1][i] = c1;
    words[2][i] = c2;
    words[3][i] = c3;
  }
}

// Polynomials in double precision without a branch, which compilers turn into SIMD code and the library's functions
// they do not. Each is good to about 1e-16 on its interval; tests compare the normals with the library's.

// sqrt(-2 ln u) for u = k * 2^-24, k odd, 1 <= k < 2^24. With k = 2^e m, m in [sqrt(1/2), sqrt(2)):
// ln u = (e - 24) ln 2 + ln m, nothing cancels as u nears 1 (e = 24), and ln m = 2 atanh((m - 1) / (m + 1)).
inline double radius(std::uint32_t k) {
  constexpr std::uint64_t kSqrtHalf = std::bit_cast<std::uint64_t>(std::numbers::sqrt2 / 2);
  const auto bits = std::bit_cast<std::uint64_t>(static_cast<double>(static_cast<std::int32_t>(k)));
  const std::uint64_t e = (bits - kSqrtHalf) >> 52;
  const double m = std::bit_cast<double>(bits - (e << 52));
  // 2^52 + e as a double is a matter of bits: SIMD code has no conversion from 64-bit integers before AVX-512.
  constexpr double kTwo52 = 4503599627370496.0;
  const double exponent = std::bit_cast<double>(e | std::bit_cast<std::uint64_t>(kTwo52)) - kTwo52;
  const double s = (m - 1.0) / (m + 1.0);
  const double z = s * s;  // at most 0.0295, so the first term left out is below 3e-17
  double series = 1.0 / 21;
  series = series * z + 1.0 / 19;
  series = series * z + 1.0 / 17;
  series = series * z + 1.0 / 15;
  series = series * z + 1.0 / 13;
  series = series * z + 1.0 / 11;
  series = series * z + 1.0 / 9;
  series = series * z + 1.0 / 7;
  series = series * z + 1.0 / 5;
  series = series * z + 1.0 / 3;
  series = series * z + 1.0;
  return std::sqrt((24.0 - exponent) * (2.0 * std::numbers::ln2) - 4.0 * s * series);
}

struct Direction {
  double cosine;
  double sine;
};

// Cosine and sine of v * 2^-23 turns, 0 <= v < 2^23: v is the nearest quarter turn plus a rest of at most an eighth.
inline Direction direction(std::uint32_t v) {
  constexpr std::uint32_t kQuarter = 1U << 21;
  const std::uint32_t shifted = v + kQuarter / 2;
  const std::uint32_t quarters = shifted / kQuarter;  // 0 to 4
  const auto rest = static_cast<std::int32_t>(shifted % kQuarter) - static_cast<std::int32_t>(kQuarter / 2);
  const double angle = rest * (2.0 * std::numbers::pi / (1 << 23));
  const double z = angle * angle;  // at most 0.617; Taylor terms left out are below 5e-17
  double sine = -1.0 / 1307674368000;
  sine = sine * z + 1.0 / 6227020800;
  sine = sine * z - 1.0 / 39916800;
  sine = sine * z + 1.0 / 362880;
  sine = sine * z - 1.0 / 5040;
  sine = sine * z + 1.0 / 120;
  sine = sine * z - 1.0 / 6;
  sine = angle + angle * z * sine;
  double cosine = 1.0 / 20922789888000;
  cosine = cosine * z - 1.0 / 87178291200;
  cosine = cosine * z + 1.0 / 479001600;
  cosine = cosine * z - 1.0 / 3628800;
  cosine = cosine * z + 1.0 / 40320;
  cosine = cosine * z - 1.0 / 720;
  cosine = cosine * z + 1.0 / 24;
  cosine = cosine * z - 1.0 / 2;
  cosine = cosine * z + 1.0;
  // A turn by quarters: odd ones swap the two, then signs, all on the bits.
  const std::uint64_t odd = std::uint64_t{0} - std::uint64_t{quarters & 1};
  const auto c = std::bit_cast<std::uint64_t>(cosine);
  const auto s = std::bit_cast<std::uint64_t>(sine);
  const std::uint64_t swap = (c ^ s) & odd;
  const std::uint64_t cosine_sign = std::uint64_t{(quarters + 1) & 2} << 62;
  const std::uint64_t sine_sign = std::uint64_t{quarters & 2} << 62;
  return {std::bit_cast<double>((c ^ swap) ^ cosine_sign), std::bit_cast<double>((s ^ swap) ^ sine_sign)};
}

void box_muller(const std::uint32_t* a, const std::uint32_t* b, std::size_t count, float* first, float* second) {
  for (std::size_t i = 0; i < count; ++i) {
    const double r = radius((a[i] >> 9) * 2 + 1);
    const Direction unit = direction(b[i] >> 9);
    first[i] = static_cast<float>(r * unit.cosine);
    second[i] = static_cast<float>(r * unit.sine);
  }
}

// Fills a box row by row. convert(words, count, values) turns `count` groups into values by word, then by group.
template <class Value, class Convert>
void fill_box(std::uint64_t seed, const NoiseBox& box, std::size_t threads, Value* out, const Convert& convert) {
  const std::size_t rows = box.stains * box.slices * box.height;
  const std::size_t workers = std::clamp<std::size_t>(rows * box.width / kValuesPerThread, 1, threads);
  const std::uint64_t end = std::uint64_t{box.x0} + box.width;
  run_parallel(workers, [&](std::size_t worker) {
    Words words;
    std::array<std::array<Value, kGroups>, 4> values;
    for (std::size_t row = rows * worker / workers; row < rows * (worker + 1) / workers; ++row) {
      const auto y = static_cast<std::uint32_t>(box.y0 + row % box.height);
      const auto slice = static_cast<std::uint32_t>(box.z0 + row / box.height % box.slices);
      const auto stain = static_cast<std::uint32_t>(row / box.height / box.slices);
      Value* const pixels = out + row * box.width;
      for (std::uint64_t x = box.x0; x < end;) {
        const std::uint64_t group = x / kGroup;
        const std::size_t count = static_cast<std::size_t>(std::min<std::uint64_t>(kGroups, (end - 1) / kGroup - group + 1));
        philox_row(seed, {static_cast<std::uint32_t>(group), y, slice, stain}, count, words);
        convert(words, count, values);
        const std::uint64_t stop = std::min(end, (group + count) * kGroup);
        for (; x < stop; ++x) pixels[x - box.x0] = values[x % kGroup][x / kGroup - group];
      }
    }
  });
}

}  // namespace

void philox_words(std::uint64_t seed, const NoiseBox& box, std::size_t threads, std::uint32_t* words) {
  fill_box(seed, box, threads, words, [](const Words& from, std::size_t, Words& to) { to = from; });
}

void noise_field(std::uint64_t seed, const NoiseBox& box, std::size_t threads, float* normals) {
  using Normals = std::array<std::array<float, kGroups>, 4>;
  fill_box(seed, box, threads, normals, [](const Words& words, std::size_t count, Normals& values) {
    box_muller(words[0].data(), words[1].data(), count, values[0].data(), values[1].data());
    box_muller(words[2].data(), words[3].data(), count, values[2].data(), values[3].data());
  });
}

}  // namespace teramind
