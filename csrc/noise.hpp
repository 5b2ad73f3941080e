// Standard normals that depend on (seed, stain, slice, y, x) alone: layout 1.
//
// Words. Philox4x32-10 (Salmon et al., SC 2011) with key (seed low, seed high) and counter (x / 4, y, slice, stain);
// output word x % 4 belongs to pixel x.
//
// Normals. Words (0, 1) and (2, 3) are two Box-Muller pairs (a, b): radius r = sqrt(-2 ln u) with
// u = ((a >> 9) + 1/2) * 2^-23, angle v = (b >> 9) * 2^-23 turns; the pair is (r cos 2 pi v, r sin 2 pi v). Here it is
// computed in double precision and rounded to float once.
//
// Why 23 bits and turns: u and v are then exact in float32 and u is never 0 or 1, so a float32 kernel on a GPU starts
// from the same numbers, can take v apart into an octant and a rest without error (which a multiplication by 2 pi
// first would not allow), and so stays within 1e-6 of these normals.
#pragma once

#include <cstddef>
#include <cstdint>

namespace teramind {

// A box of the field: its first slice, row and column, and its extent. Stains begin at 0.
struct NoiseBox {
  std::uint32_t z0;
  std::uint32_t y0;
  std::uint32_t x0;
  std::size_t stains;
  std::size_t slices;
  std::size_t height;
  std::size_t width;
};

// Both write stains x slices x height x width values in that order. first + extent <= 2^32 along every axis;
// threads >= 1. Neither result depends on the threads.
void philox_words(std::uint64_t seed, const NoiseBox& box, std::size_t threads, std::uint32_t* words);
void noise_field(std::uint64_t seed, const NoiseBox& box, std::size_t threads, float* normals);

}  // namespace teramind
