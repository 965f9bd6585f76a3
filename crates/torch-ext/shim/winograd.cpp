// Compiled once for each family of processors, with LANES (floats in a register) and FAMILY defined.
#include "winograd.h"
#include <algorithm>
#include <vector>

namespace vireo {
namespace {

using Vector = float __attribute__((vector_size(4 * LANES), aligned(4), may_alias));

// 4×4 products for each tile of 2×2 outputs.
constexpr int64_t POINTS = 16;
// Registers that hold sums: ROWS tiles times COLUMNS vectors of output channels. Three quarters of those that there are.
constexpr int64_t ROWS = LANES == 16 ? 12 : 6;
constexpr int64_t COLUMNS = 2;
constexpr int64_t PANEL = COLUMNS * LANES;
// Tiles that are worked on together, at most: few enough that what they need stays in the second-level cache.
constexpr int64_t MOST_TILES = 48;

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

int64_t transformed_kernel(const Winograd &job) {
  return POINTS * panels(job) * job.kernel_frames * job.inputs * PANEL;
}

// The rows of the paper's G applied to three numbers.
void kernel_points(const Vector *g, Vector *out) {
  Vector outer = (g[0] + g[2]) * 0.5f, inner = g[1] * 0.5f;
  out[0] = g[0];
  out[1] = outer + inner;
  out[2] = outer - inner;
  out[3] = g[2];
}

// G w Gᵀ, in the order point, panel of outputs, frame, input, output.
void transform_kernel(const Winograd &job, int64_t begin, int64_t end) {
  const int64_t frames = job.kernel_frames, inputs = job.inputs, outputs = job.outputs;
  const int64_t panel_size = frames * inputs * PANEL, point_size = panels(job) * panel_size;
  for (int64_t frame = 0; frame < frames; ++frame)
    for (int64_t input = begin; input < end; ++input)
      for (int64_t output = 0; output < panels(job) * PANEL; output += LANES) {
        Vector by_column[3][4], points[4][4];
        for (int64_t column = 0; column < 3; ++column) {
          Vector g[3] = {};
          for (int64_t row = 0; row < 3 && output < outputs; ++row)
            g[row] = load(job.weight + (((frame * 3 + row) * 3 + column) * inputs + input) * outputs + output);
          kernel_points(g, by_column[column]);
        }
        float *to = job.kernel + output / PANEL * panel_size + (frame * inputs + input) * PANEL + output % PANEL;
        for (int64_t row = 0; row < 4; ++row) {
          Vector g[3] = {by_column[0][row], by_column[1][row], by_column[2][row]};
          kernel_points(g, points[row]);
          for (int64_t column = 0; column < 4; ++column)
            store(to + (row * 4 + column) * point_size, points[row][column]);
        }
      }
}

// The paper's Bᵀ d B of 4×4 pixels, for all channels of a tile: pixels[i] is null outside the picture.
void transform_tile(const float *const *pixels, int64_t channels, float *to, int64_t point_size) {
  for (int64_t c = 0; c < channels; c += LANES) {
    Vector rows[4][4];
    for (int64_t column = 0; column < 4; ++column) {
      Vector d[4];
      for (int64_t row = 0; row < 4; ++row) {
        const float *pixel = pixels[row * 4 + column];
        d[row] = pixel ? load(pixel + c) : Vector{};
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

// ROWS tiles by a panel of outputs: sums over the window's frames and the input channels. `a[frame]` is [tile, input].
void multiply(const float *const *a, int64_t frames, int64_t inputs, const float *b, float *out,
              int64_t out_stride) {
  Vector sums[ROWS][COLUMNS] = {};
  for (int64_t frame = 0; frame < frames; ++frame) {
    const float *tiles = a[frame];
    for (int64_t k = 0; k < inputs; ++k, b += PANEL) {
      Vector weights[COLUMNS];
      for (int64_t n = 0; n < COLUMNS; ++n)
        weights[n] = load(b + n * LANES);
      for (int64_t m = 0; m < ROWS; ++m)
        for (int64_t n = 0; n < COLUMNS; ++n)
          sums[m][n] += tiles[m * inputs + k] * weights[n];
    }
  }
  for (int64_t m = 0; m < ROWS; ++m)
    for (int64_t n = 0; n < COLUMNS; ++n)
      store(out + m * out_stride + n * LANES, sums[m][n]);
}

// One block of tiles of one clip, through all frames: a ring of `kernel_frames` transformed frames goes along.
struct Block {
  const Winograd &job;
  int64_t clip, first, tiles;
  // Numbers of one point: [tile, input] of one frame, and [tile, output].
  int64_t in_point, out_point;
  float *ring, *products;

  void read(int64_t frame) const {
    float *to = ring + frame % job.kernel_frames * POINTS * in_point;
    const int64_t frames = job.frames + job.kernel_frames - 1;
    const float *picture = job.x + (clip * frames + frame) * job.height * job.width * job.inputs;
    for (int64_t tile = 0; tile < tiles; ++tile, to += job.inputs) {
      const int64_t top = (first + tile) / job.tile_columns() * 2 - job.pad_rows;
      const int64_t left = (first + tile) % job.tile_columns() * 2 - job.pad_columns;
      const float *pixels[POINTS];
      for (int64_t i = 0; i < POINTS; ++i) {
        const int64_t row = top + i / 4, column = left + i % 4;
        const bool inside = row >= 0 && row < job.height && column >= 0 && column < job.width;
        pixels[i] = inside ? picture + (row * job.width + column) * job.inputs : nullptr;
      }
      transform_tile(pixels, job.inputs, to, in_point);
    }
  }

  void multiply_all(int64_t frame) const {
    const int64_t panel_size = job.kernel_frames * job.inputs * PANEL;
    const float *kernel = job.kernel;
    std::vector<const float *> a(job.kernel_frames);
    for (int64_t point = 0; point < POINTS; ++point)
      for (int64_t panel = 0; panel < panels(job); ++panel, kernel += panel_size)
        for (int64_t tile = 0; tile < tiles; tile += ROWS) {
          for (int64_t i = 0; i < job.kernel_frames; ++i) {
            const int64_t slot = (frame + i) % job.kernel_frames;
            a[i] = ring + (slot * POINTS + point) * in_point + tile * job.inputs;
          }
          const int64_t width = panels(job) * PANEL;
          multiply(a.data(), job.kernel_frames, job.inputs, kernel,
                   products + point * out_point + tile * width + panel * PANEL, width);
        }
  }

  // The paper's Aᵀ m A, plus the bias.
  void write(int64_t frame) const {
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
};

void convolve(const Winograd &job, int64_t begin, int64_t end) {
  const int64_t all = job.tile_rows() * job.tile_columns(), size = block_size(job), per_clip = blocks_per_clip(job);
  const int64_t in_point = size * job.inputs, out_point = size * panels(job) * PANEL;
  std::vector<float> ring(job.kernel_frames * POINTS * in_point), products(POINTS * out_point);
  for (int64_t index = begin; index < end; ++index) {
    const int64_t first = index % per_clip * size;
    const Block block{job,       index / per_clip, first,      std::min(size, all - first),
                      in_point,  out_point,        ring.data(), products.data()};
    for (int64_t frame = 0; frame < job.kernel_frames - 1; ++frame)
      block.read(frame);
    for (int64_t frame = 0; frame < job.frames; ++frame) {
      block.read(frame + job.kernel_frames - 1);
      block.multiply_all(frame);
      block.write(frame);
    }
  }
}

} // namespace

extern const WinogradKernels FAMILY = {LANES, transformed_kernel, transform_kernel, blocks, convolve};

} // namespace vireo
