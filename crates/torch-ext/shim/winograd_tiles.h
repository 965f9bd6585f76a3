// What winograd.cpp and winograd_kernel_gradient.cpp share: vectors of channels, and tiles of pixels on the way to the domain of the
// products. Compiled once for each family of processors, with LANES (floats in a register) defined.
#pragma once
#include "winograd.h"
#include <algorithm>

namespace vireo {
namespace {

using Vector = float __attribute__((vector_size(4 * LANES), aligned(4), may_alias));

// 4×4 products for each tile of 2×2 outputs in a frame.
constexpr int64_t POINTS = 16;
// The kernel's frames for which time is filtered minimally too: 4 products for two frames of outputs.
constexpr int64_t MINIMAL_FRAMES = 3;
// Registers that hold sums: ROWS of one factor times COLUMNS vectors of the other. Three quarters of those that there are.
constexpr int64_t ROWS = LANES == 16 ? 12 : 6;
constexpr int64_t COLUMNS = 2;
constexpr int64_t PANEL = COLUMNS * LANES;

Vector load(const float *from) { return *reinterpret_cast<const Vector *>(from); }
void store(float *to, Vector value) { *reinterpret_cast<Vector *>(to) = value; }

int64_t divided_up(int64_t count, int64_t size) { return (count + size - 1) / size; }
int64_t rounded_up(int64_t count, int64_t size) { return divided_up(count, size) * size; }

bool minimal_in_time(const Winograd &job) { return job.kernel_frames == MINIMAL_FRAMES; }

// What is transformed in a frame and multiplied there: each frame of the kernel, or combinations of them.
int64_t terms(const Winograd &job) { return minimal_in_time(job) ? 4 : job.kernel_frames; }

// A frame, plus another one times a sign; 0: there is no other.
struct Term {
  int64_t frame, other;
  float sign;
};

// The paper's Bᵀ applied in time to the four frames that two frames of outputs see, the first of them `frame`; the last row has
// the opposite sign.
Term seen(int64_t term, int64_t frame) {
  switch (term) {
  case 0:
    return {frame, frame + 2, -1};
  case 1:
    return {frame + 1, frame + 2, 1};
  case 2:
    return {frame + 2, frame + 1, -1};
  default:
    return {frame + 3, frame + 1, -1};
  }
}

// The transpose of what makes two frames of outputs of four products, applied to the gradients of two frames, or of the first
// of them alone, of which the fourth is none.
Term spread(int64_t term, int64_t frame, bool two) {
  const float signs[] = {0, 1, -1};
  return term == 3 ? Term{frame + 1, 0, 0} : Term{frame, frame + 1, two ? signs[term] : 0};
}

// A frame of a clip that an output sees; null where zeros stand for it.
const float *seen_frame(const Winograd &job, int64_t clip, int64_t frame) {
  const int64_t index = frame - job.missing;
  if (index < 0 && !job.repeat_first)
    return nullptr;
  return job.x + clip * job.x_clip + std::max<int64_t>(index, 0) * job.height * job.width * job.inputs;
}

// SIDE×SIDE pixels of two frames, or of one.
template <int64_t SIDE> struct Pixels {
  const float *frame, *other;
  float sign;
  // -1: outside the picture.
  int64_t offsets[SIDE * SIDE];

  Pixels(const float *frame, const float *other, float sign) : frame(frame), other(other), sign(sign) {}

  void place(int64_t top, int64_t left, int64_t height, int64_t width, int64_t channels) {
    for (int64_t i = 0; i < SIDE * SIDE; ++i) {
      const int64_t row = top + i / SIDE, column = left + i % SIDE;
      const bool inside = row >= 0 && row < height && column >= 0 && column < width;
      offsets[i] = inside ? (row * width + column) * channels : -1;
    }
  }

  Vector at(int64_t row, int64_t column, int64_t channel) const {
    const int64_t offset = offsets[row * SIDE + column];
    if (offset < 0)
      return Vector{};
    const Vector value = frame ? load(frame + offset + channel) : Vector{};
    return other ? value + load(other + offset + channel) * sign : value;
  }
};

// Transforms columns, then rows, of SIDE×SIDE pixels to 4×4 points, for all channels of a tile.
template <int64_t SIDE, typename Transform>
void transform_tile(const Pixels<SIDE> &pixels, int64_t channels, float *to, int64_t point_size, Transform transform) {
  for (int64_t c = 0; c < channels; c += LANES) {
    Vector rows[4][SIDE];
    for (int64_t column = 0; column < SIDE; ++column) {
      Vector in[SIDE], out[4];
      for (int64_t row = 0; row < SIDE; ++row)
        in[row] = pixels.at(row, column, c);
      transform(in, out);
      for (int64_t row = 0; row < 4; ++row)
        rows[row][column] = out[row];
    }
    for (int64_t row = 0; row < 4; ++row) {
      Vector out[4];
      transform(rows[row], out);
      for (int64_t column = 0; column < 4; ++column)
        store(to + (row * 4 + column) * point_size + c, out[column]);
    }
  }
}

// The input pixels of some tiles in the domain of the products: the paper's Bᵀ d B, as [point][tile][input].
void read_tiles(const Winograd &job, int64_t clip, int64_t first, int64_t tiles, Term of, float *to, int64_t point_size) {
  Pixels<4> pixels(seen_frame(job, clip, of.frame), of.sign == 0 ? nullptr : seen_frame(job, clip, of.other), of.sign);
  for (int64_t tile = first; tile < first + tiles; ++tile, to += job.inputs) {
    pixels.place(tile / job.tile_columns() * 2 - job.pad_rows, tile % job.tile_columns() * 2 - job.pad_columns, job.height,
                 job.width, job.inputs);
    transform_tile(pixels, job.inputs, to, point_size, [](const Vector *d, Vector *out) {
      out[0] = d[0] - d[2];
      out[1] = d[1] + d[2];
      out[2] = d[2] - d[1];
      out[3] = d[1] - d[3];
    });
  }
}

} // namespace
} // namespace vireo
