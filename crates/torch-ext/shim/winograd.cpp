// Compiled once for each family of processors, with LANES (floats in a register) and FAMILY defined.
#include "winograd_tiles.h"
#include <vector>

namespace vireo {
namespace {

// Tiles that are worked on together, at most: few enough that what they need stays in the second-level cache.
constexpr int64_t MOST_TILES = 2 * ROWS;

// Tiles of a block: blocks of a clip are about equally large, so that threads have equal work.
int64_t block_size(const Winograd &job) {
  const int64_t all = job.tile_rows() * job.tile_columns();
  return rounded_up(divided_up(all, divided_up(all, MOST_TILES)), ROWS);
}

int64_t blocks_per_clip(const Winograd &job) {
  return divided_up(job.tile_rows() * job.tile_columns(), block_size(job));
}

int64_t panels(const Winograd &job) { return divided_up(job.outputs, PANEL); }

int64_t blocks(const Winograd &job) { return job.batch * blocks_per_clip(job); }

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

// The paper's Aᵀ m A: a tile's 2×2 outputs.
void tile_outputs(const float *products, int64_t point_size, Vector (*out)[2]) {
  Vector rows[2][4];
  for (int64_t column = 0; column < 4; ++column) {
    Vector m[4];
    for (int64_t row = 0; row < 4; ++row)
      m[row] = load(products + (row * 4 + column) * point_size);
    rows[0][column] = m[0] + m[1] + m[2];
    rows[1][column] = m[1] - m[2] - m[3];
  }
  for (int64_t row = 0; row < 2; ++row) {
    out[row][0] = rows[row][0] + rows[row][1] + rows[row][2];
    out[row][1] = rows[row][1] - rows[row][2] - rows[row][3];
  }
}

// One block of tiles of one clip. A step makes one frame of outputs, or two where time is filtered minimally.
struct Block {
  const Winograd &job;
  int64_t clip, first, tiles;
  // Numbers of one point: [tile, input] of one term, and [tile, output] of one frame or term.
  int64_t in_point, out_point;
  float *inputs, *products;

  // Tiles of a term to its place among the inputs.
  void read(int64_t term, Term of) const {
    read_tiles(job, clip, first, tiles, of, inputs + term * POINTS * in_point, in_point);
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

  // Each of some terms by itself.
  void multiply_apart(int64_t terms) const {
    each_product([&](const float *tiles, const float *kernel, float *out, int64_t width) {
      for (int64_t term = 0; term < terms; ++term) {
        Sums sums = {};
        accumulate(sums, tiles + term * POINTS * in_point, job.inputs, kernel + term * job.inputs * PANEL);
        put(sums, out + term * POINTS * out_point, width);
      }
    });
  }

  // Calls write(products of a tile's first point, place of its first output in a frame, row, column) for vectors of outputs.
  template <typename Write> void each_tile(Write write) const {
    const int64_t width = panels(job) * PANEL;
    for (int64_t tile = 0; tile < tiles; ++tile) {
      const int64_t top = (first + tile) / job.tile_columns() * 2, left = (first + tile) % job.tile_columns() * 2;
      for (int64_t o = 0; o < job.outputs; o += LANES)
        write(products + tile * width + o, o, top, left);
    }
  }

  float *frame_of_outputs(int64_t frame) const {
    return job.y + clip * job.y_clip + frame * job.out_height() * job.out_width() * job.outputs;
  }

  // Calls put(place, value) for the outputs of a tile that lie inside the picture.
  template <typename Put>
  void each_output(float *picture, int64_t o, int64_t top, int64_t left, const Vector (*values)[2], Put put) const {
    for (int64_t row = 0; row < std::min<int64_t>(2, job.out_height() - top); ++row)
      for (int64_t column = 0; column < std::min<int64_t>(2, job.out_width() - left); ++column)
        put(picture + ((top + row) * job.out_width() + left + column) * job.outputs + o, values[row][column]);
  }

  // One frame of outputs, of the products of frame `slot`, plus the bias.
  void write(int64_t frame, int64_t slot) const {
    each_tile([&](const float *products, int64_t o, int64_t top, int64_t left) {
      const Vector bias = job.bias ? load(job.bias + o) : Vector{};
      Vector values[2][2];
      tile_outputs(products + slot * POINTS * out_point, out_point, values);
      each_output(frame_of_outputs(frame), o, top, left, values,
                  [&](float *to, Vector value) { store(to, value + bias); });
    });
  }

  void frame(int64_t frame) const {
    for (int64_t term = 0; term < job.kernel_frames; ++term)
      read(term, {frame + term, 0, 0});
    multiply_all();
    write(frame, 0);
  }

  // Two frames, or the last one alone.
  void pair(int64_t frame) const {
    const bool two = frame + 1 < job.frames;
    for (int64_t term = 0; term < (two ? 4 : 3); ++term)
      read(term, seen(term, frame));
    multiply_minimal(two);
    write(frame, 0);
    if (two)
      write(frame + 1, 1);
  }

  // Backwards, of a kernel of one frame.
  void frame_back(int64_t frame) const {
    read_gradient(0, {frame, 0, 0});
    multiply_apart(1);
    each_tile([&](const float *products, int64_t o, int64_t top, int64_t left) {
      Vector values[2][2];
      tile_outputs(products, out_point, values);
      add_to_frame(frame, o, top, left, values);
    });
  }

  // Backwards, of two frames of outputs, or of the last one alone: the transpose of what `seen` says gives the four frames that
  // they see.
  void pair_back(int64_t frame) const {
    const bool two = frame + 1 < job.frames;
    const int64_t terms = two ? 4 : 3;
    for (int64_t term = 0; term < terms; ++term)
      read_gradient(term, spread(term, frame, two));
    multiply_apart(terms);
    each_tile([&](const float *products, int64_t o, int64_t top, int64_t left) {
      Vector m[4][2][2] = {}, frames[4][2][2];
      for (int64_t term = 0; term < terms; ++term)
        tile_outputs(products + term * POINTS * out_point, out_point, m[term]);
      for (int64_t i = 0; i < 2; ++i)
        for (int64_t j = 0; j < 2; ++j) {
          frames[0][i][j] = m[0][i][j];
          frames[1][i][j] = m[1][i][j] - m[2][i][j] - m[3][i][j];
          frames[2][i][j] = m[1][i][j] + m[2][i][j] - m[0][i][j];
          frames[3][i][j] = m[3][i][j];
        }
      for (int64_t term = 0; term < terms; ++term)
        add_to_frame(frame + term, o, top, left, frames[term]);
    });
  }

  // As `read`, of gradients, in front of which none is missing.
  void read_gradient(int64_t term, Term of) const {
    Winograd whole = job;
    whole.missing = 0;
    read_tiles(whole, clip, first, tiles, of, inputs + term * POINTS * in_point, in_point);
  }

  // Adds to the frame that an output sees, or to nothing where that is missing.
  void add_to_frame(int64_t seen, int64_t o, int64_t top, int64_t left, const Vector (*values)[2]) const {
    const int64_t frame = seen - job.missing;
    if (frame >= 0 || job.repeat_first)
      each_output(frame_of_outputs(std::max<int64_t>(frame, 0)), o, top, left, values,
                  [](float *to, Vector value) { store(to, load(to) + value); });
  }
};

// Calls run(block, frame) for every block, and every frame of outputs or pair of such.
template <typename Run> void each_step(const Winograd &job, int64_t begin, int64_t end, int64_t product_slots, Run run) {
  const int64_t all = job.tile_rows() * job.tile_columns(), size = block_size(job), per_clip = blocks_per_clip(job);
  const int64_t in_point = size * job.inputs, out_point = size * panels(job) * PANEL;
  std::vector<float> inputs(terms(job) * POINTS * in_point), products(product_slots * POINTS * out_point);
  for (int64_t index = begin; index < end; ++index) {
    const int64_t first = index % per_clip * size;
    const Block block{job,      index / per_clip, first,         std::min(size, all - first),
                      in_point, out_point,        inputs.data(), products.data()};
    for (int64_t frame = 0; frame < job.frames; frame += minimal_in_time(job) ? 2 : 1)
      run(block, frame);
  }
}

void convolve(const Winograd &job, int64_t begin, int64_t end) {
  each_step(job, begin, end, 2, [&](const Block &block, int64_t frame) {
    minimal_in_time(job) ? block.pair(frame) : block.frame(frame);
  });
}

void convolve_back(const Winograd &job, int64_t begin, int64_t end) {
  each_step(job, begin, end, terms(job), [&](const Block &block, int64_t frame) {
    minimal_in_time(job) ? block.pair_back(frame) : block.frame_back(frame);
  });
}

} // namespace

extern const WinogradKernels FAMILY = {LANES, transformed_kernel, transform_kernel, blocks, convolve, convolve_back};

} // namespace vireo
