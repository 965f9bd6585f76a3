// Compiled once for each family of processors, with LANES (floats in a register) and FAMILY defined.
#include "winograd.h"
#include <algorithm>
#include <vector>

namespace vireo {
namespace {

using Vector = float __attribute__((vector_size(4 * LANES), aligned(4), may_alias));

// 4×4 products for each tile of 2×2 outputs in a frame.
constexpr int64_t POINTS = 16;
// The kernel's frames for which time is filtered minimally too: 4 products for two frames of outputs.
constexpr int64_t MINIMAL_FRAMES = 3;
// Registers that hold sums: ROWS tiles times COLUMNS vectors of output channels. Three quarters of those that there are.
constexpr int64_t ROWS = LANES == 16 ? 12 : 6;
constexpr int64_t COLUMNS = 2;
constexpr int64_t PANEL = COLUMNS * LANES;
// Tiles that are worked on together, at most: few enough that what they need stays in the second-level cache.
constexpr int64_t MOST_TILES = 2 * ROWS;

Vector load(const float *from) { return *reinterpret_cast<const Vector *>(from); }
void store(float *to, Vector value) { *reinterpret_cast<Vector *>(to) = value; }

int64_t divided_up(int64_t count, int64_t size) { return (count + size - 1) / size; }

// Tiles of a block: blocks of a clip are about equally large, so that threads have equal work.
int64_t block_size(const Winograd &job) {
  const int64_t all = job.tile_rows() * job.tile_columns();
  return divided_up(divided_up(all, divided_up(all, MOST_TILES)), ROWS) * ROWS;
}

int64_t blocks_per_clip(const Winograd &job) {
  return divided_up(job.tile_rows() * job.tile_columns(), block_size(job));
}

int64_t panels(const Winograd &job) { return divided_up(job.outputs, PANEL); }

int64_t blocks(const Winograd &job) { return job.batch * blocks_per_clip(job); }

bool minimal_in_time(const Winograd &job) { return job.kernel_frames == MINIMAL_FRAMES; }

// What is transformed in a frame and multiplied there: each frame of the kernel, or combinations of them.
int64_t terms(const Winograd &job) { return minimal_in_time(job) ? 4 : job.kernel_frames; }

int64_t transformed_kernel(const Winograd &job) {
  return POINTS * panels(job) * terms(job) * job.inputs * PANEL;
}

// The rows of the paper's G applied to three numbers.
void kernel_points(const Vector *g, Vector *out) {
  Vector outer = (g[0] + g[2]) * 0.5f, inner = g[1] * 0.5f;
  out[0] = g[0];
  out[1] = outer + inner;
  out[2] = outer - inner;
  out[3] = g[2];
}

// G w Gᵀ of the kernel's frames, or of G applied to them, in the order point, panel of outputs, term, input, output.
void transform_kernel(const Winograd &job, int64_t begin, int64_t end) {
  const int64_t inputs = job.inputs, outputs = job.outputs, frame_size = 9 * inputs * outputs;
  const int64_t panel_size = terms(job) * inputs * PANEL, point_size = panels(job) * panel_size;
  for (int64_t input = begin; input < end; ++input)
    for (int64_t output = 0; output < panels(job) * PANEL; output += LANES)
      for (int64_t frame = 0; frame < job.kernel_frames; frame += minimal_in_time(job) ? MINIMAL_FRAMES : 1) {
        // [term][row][column], of one frame or of all that are combined.
        Vector kernel[4][3][3] = {};
        for (int64_t pixel = 0; pixel < 9 && output < outputs; ++pixel) {
          const float *from = job.weight + frame * frame_size + (pixel * inputs + input) * outputs + output;
          if (minimal_in_time(job)) {
            Vector g[3] = {load(from), load(from + frame_size), load(from + 2 * frame_size)}, combined[4];
            kernel_points(g, combined);
            for (int64_t term = 0; term < 4; ++term)
              kernel[term][pixel / 3][pixel % 3] = combined[term];
          } else {
            kernel[0][pixel / 3][pixel % 3] = load(from);
          }
        }
        for (int64_t term = 0; term < (minimal_in_time(job) ? 4 : 1); ++term) {
          Vector by_column[3][4], points[4];
          for (int64_t column = 0; column < 3; ++column) {
            Vector g[3] = {kernel[term][0][column], kernel[term][1][column], kernel[term][2][column]};
            kernel_points(g, by_column[column]);
          }
          float *to = job.kernel + output / PANEL * panel_size + ((frame + term) * inputs + input) * PANEL + output % PANEL;
          for (int64_t row = 0; row < 4; ++row) {
            Vector g[3] = {by_column[0][row], by_column[1][row], by_column[2][row]};
            kernel_points(g, points);
            for (int64_t column = 0; column < 4; ++column)
              store(to + (row * 4 + column) * point_size, points[column]);
          }
        }
      }
}

// The frames of a term: one, or the sum or difference of two.
struct Term {
  int64_t frame, other;
  // Of the other frame; 0: there is none.
  float sign;
};

// The paper's Bᵀ d B of 4×4 pixels, for all channels of a tile: pixels[i] is null outside the picture. `other`: how far the
// same pixel of the other frame is away.
template <bool COMBINED>
void transform_tile(const float *const *pixels, int64_t other, float sign, int64_t channels, float *to, int64_t point_size) {
  for (int64_t c = 0; c < channels; c += LANES) {
    Vector rows[4][4];
    for (int64_t column = 0; column < 4; ++column) {
      Vector d[4];
      for (int64_t row = 0; row < 4; ++row) {
        const float *pixel = pixels[row * 4 + column];
        d[row] = pixel ? load(pixel + c) : Vector{};
        if (COMBINED && pixel)
          d[row] += load(pixel + other + c) * sign;
      }
      rows[0][column] = d[0] - d[2];
      rows[1][column] = d[1] + d[2];
      rows[2][column] = d[2] - d[1];
      rows[3][column] = d[1] - d[3];
    }
    for (int64_t row = 0; row < 4; ++row) {
      float *out = to + row * 4 * point_size + c;
      store(out, rows[row][0] - rows[row][2]);
      store(out + point_size, rows[row][1] + rows[row][2]);
      store(out + 2 * point_size, rows[row][2] - rows[row][1]);
      store(out + 3 * point_size, rows[row][1] - rows[row][3]);
    }
  }
}

// Sums of ROWS tiles times a panel of outputs.
using Sums = Vector[ROWS][COLUMNS];

// Adds the products of one term, over the input channels. `tiles` is [tile, input], `kernel` [input, output]. A function of
// its own, so that the sums stay in registers.
__attribute__((noinline)) void accumulate(Sums &into, const float *tiles, int64_t inputs, const float *kernel) {
  Sums sums;
  for (int64_t m = 0; m < ROWS; ++m)
    for (int64_t n = 0; n < COLUMNS; ++n)
      sums[m][n] = into[m][n];
  for (int64_t k = 0; k < inputs; ++k, kernel += PANEL) {
    Vector weights[COLUMNS];
    for (int64_t n = 0; n < COLUMNS; ++n)
      weights[n] = load(kernel + n * LANES);
    for (int64_t m = 0; m < ROWS; ++m)
      for (int64_t n = 0; n < COLUMNS; ++n)
        sums[m][n] += tiles[m * inputs + k] * weights[n];
  }
  for (int64_t m = 0; m < ROWS; ++m)
    for (int64_t n = 0; n < COLUMNS; ++n)
      into[m][n] = sums[m][n];
}

void put(const Sums &sums, float *out, int64_t out_stride) {
  for (int64_t m = 0; m < ROWS; ++m)
    for (int64_t n = 0; n < COLUMNS; ++n)
      store(out + m * out_stride + n * LANES, sums[m][n]);
}

// One block of tiles of one clip. A step makes one frame of outputs, or two where time is filtered minimally.
struct Block {
  const Winograd &job;
  int64_t clip, first, tiles;
  // Numbers of one point: [tile, input] of one term, and [tile, output] of one frame.
  int64_t in_point, out_point;
  float *inputs, *products;

  // Tiles of a term to its place among the inputs.
  void read(int64_t term, Term of) const {
    float *to = inputs + term * POINTS * in_point;
    const int64_t frame_size = job.height * job.width * job.inputs, frames = job.frames + job.kernel_frames - 1;
    const float *picture = job.x + (clip * frames + of.frame) * frame_size;
    const int64_t other = (of.other - of.frame) * frame_size;
    for (int64_t tile = 0; tile < tiles; ++tile, to += job.inputs) {
      const int64_t top = (first + tile) / job.tile_columns() * 2 - job.pad_rows;
      const int64_t left = (first + tile) % job.tile_columns() * 2 - job.pad_columns;
      const float *pixels[POINTS];
      for (int64_t i = 0; i < POINTS; ++i) {
        const int64_t row = top + i / 4, column = left + i % 4;
        const bool inside = row >= 0 && row < job.height && column >= 0 && column < job.width;
        pixels[i] = inside ? picture + (row * job.width + column) * job.inputs : nullptr;
      }
      if (of.sign == 0)
        transform_tile<false>(pixels, 0, 0, job.inputs, to, in_point);
      else
        transform_tile<true>(pixels, other, of.sign, job.inputs, to, in_point);
    }
  }

  // The products of all points, for `frames` frames of outputs.
  template <typename Multiply> void each_product(Multiply multiply) const {
    const int64_t panel_size = terms(job) * job.inputs * PANEL, width = panels(job) * PANEL;
    const float *kernel = job.kernel;
    for (int64_t point = 0; point < POINTS; ++point)
      for (int64_t panel = 0; panel < panels(job); ++panel, kernel += panel_size)
        for (int64_t tile = 0; tile < tiles; tile += ROWS)
          multiply(inputs + point * in_point + tile * job.inputs, kernel,
                   products + point * out_point + tile * width + panel * PANEL, width);
  }

  // Outputs of one frame: the sum over the kernel's frames.
  void multiply_all() const {
    each_product([&](const float *tiles, const float *kernel, float *out, int64_t width) {
      Sums sums = {};
      for (int64_t term = 0; term < job.kernel_frames; ++term)
        accumulate(sums, tiles + term * POINTS * in_point, job.inputs, kernel + term * job.inputs * PANEL);
      put(sums, out, width);
    });
  }

  // Outputs of two frames, or of the first of them alone, of the four terms m: the paper's Aᵀ m, but for the sign of m[3].
  void multiply_minimal(bool two) const {
    each_product([&](const float *tiles, const float *kernel, float *out, int64_t width) {
      auto add = [&](Sums &sums, int64_t term) {
        accumulate(sums, tiles + term * POINTS * in_point, job.inputs, kernel + term * job.inputs * PANEL);
      };
      Sums inner = {}, sums = {}, second;
      add(inner, 1);
      add(sums, 2);
      for (int64_t m = 0; m < ROWS; ++m)
        for (int64_t n = 0; n < COLUMNS; ++n) {
          second[m][n] = inner[m][n] - sums[m][n];
          sums[m][n] += inner[m][n];
        }
      add(sums, 0);
      put(sums, out, width);
      if (two) {
        add(second, 3);
        put(second, out + POINTS * out_point, width);
      }
    });
  }

  // The paper's Aᵀ m A, plus the bias, of one frame's products.
  void write(int64_t frame, const float *products) const {
    const int64_t width = panels(job) * PANEL;
    float *picture = job.y + (clip * job.frames + frame) * job.out_height() * job.out_width() * job.outputs;
    for (int64_t tile = 0; tile < tiles; ++tile) {
      const int64_t top = (first + tile) / job.tile_columns() * 2, left = (first + tile) % job.tile_columns() * 2;
      const bool two_rows = top + 1 < job.out_height(), two_columns = left + 1 < job.out_width();
      float *to = picture + (top * job.out_width() + left) * job.outputs;
      for (int64_t o = 0; o < job.outputs; o += LANES) {
        const Vector bias = job.bias ? load(job.bias + o) : Vector{};
        Vector rows[2][4];
        for (int64_t column = 0; column < 4; ++column) {
          Vector m[4];
          for (int64_t row = 0; row < 4; ++row)
            m[row] = load(products + (row * 4 + column) * out_point + tile * width + o);
          rows[0][column] = m[0] + m[1] + m[2];
          rows[1][column] = m[1] - m[2] - m[3];
        }
        for (int64_t row = 0; row < (two_rows ? 2 : 1); ++row) {
          float *out = to + row * job.out_width() * job.outputs + o;
          store(out, rows[row][0] + rows[row][1] + rows[row][2] + bias);
          if (two_columns)
            store(out + job.outputs, rows[row][1] - rows[row][2] - rows[row][3] + bias);
        }
      }
    }
  }

  void frame(int64_t frame) const {
    for (int64_t term = 0; term < job.kernel_frames; ++term)
      read(term, {frame + term, 0, 0});
    multiply_all();
    write(frame, products);
  }

  // Two frames, or the last one alone.
  void pair(int64_t frame) const {
    const bool two = frame + 1 < job.frames;
    read(0, {frame, frame + 2, -1});
    read(1, {frame + 1, frame + 2, 1});
    read(2, {frame + 2, frame + 1, -1});
    if (two)
      read(3, {frame + 3, frame + 1, -1});
    multiply_minimal(two);
    write(frame, products);
    if (two)
      write(frame + 1, products + POINTS * out_point);
  }
};

void convolve(const Winograd &job, int64_t begin, int64_t end) {
  const int64_t all = job.tile_rows() * job.tile_columns(), size = block_size(job), per_clip = blocks_per_clip(job);
  const int64_t in_point = size * job.inputs, out_point = size * panels(job) * PANEL;
  std::vector<float> inputs(terms(job) * POINTS * in_point), products(2 * POINTS * out_point);
  for (int64_t index = begin; index < end; ++index) {
    const int64_t first = index % per_clip * size;
    const Block block{job,      index / per_clip, first,         std::min(size, all - first),
                      in_point, out_point,        inputs.data(), products.data()};
    for (int64_t frame = 0; frame < job.frames; frame += minimal_in_time(job) ? 2 : 1)
      minimal_in_time(job) ? block.pair(frame) : block.frame(frame);
  }
}

} // namespace

extern const WinogradKernels FAMILY = {LANES, transformed_kernel, transform_kernel, blocks, convolve};

} // namespace vireo
