// Compiled once for each family of processors, with LANES (floats in a register) and FAMILY defined.
#include "winograd_tiles.h"
#include <vector>

namespace vireo {
namespace {

// Tiles that are worked on together, at most: enough that a sum is seldom put away, few enough for the second-level cache.
constexpr int64_t MOST_TILES = 48;

// Inputs and outputs, of a transformed gradient, with the room that whole steps of the multiplication need.
int64_t rows(const Winograd &job) { return rounded_up(job.inputs, ROWS); }
int64_t columns(const Winograd &job) { return rounded_up(job.outputs, PANEL); }

// [term][point][input][output].
int64_t transformed(const Winograd &job) { return terms(job) * POINTS * rows(job) * columns(job); }

// Adds products over tiles: `tiles` is [tile, input], `gradients` [tile, output].
__attribute__((noinline)) void accumulate(float *into, int64_t into_stride, const float *tiles, int64_t inputs,
                                          const float *gradients, int64_t outputs, int64_t count) {
  Vector sums[ROWS][COLUMNS];
  for (int64_t m = 0; m < ROWS; ++m)
    for (int64_t n = 0; n < COLUMNS; ++n)
      sums[m][n] = load(into + m * into_stride + n * LANES);
  for (int64_t tile = 0; tile < count; ++tile, tiles += inputs, gradients += outputs) {
    Vector columns[COLUMNS];
    for (int64_t n = 0; n < COLUMNS; ++n)
      columns[n] = load(gradients + n * LANES);
    for (int64_t m = 0; m < ROWS; ++m)
      for (int64_t n = 0; n < COLUMNS; ++n)
        sums[m][n] += tiles[m] * columns[n];
  }
  for (int64_t m = 0; m < ROWS; ++m)
    for (int64_t n = 0; n < COLUMNS; ++n)
      store(into + m * into_stride + n * LANES, sums[m][n]);
}

// The gradients of some tiles' 2×2 outputs in the domain of the products: the paper's A y Aᵀ, as [point][tile][column].
void read_gradients(const Winograd &job, int64_t clip, int64_t first, int64_t tiles, Term of, float *to, int64_t point_size) {
  const int64_t frame_size = job.out_height() * job.out_width() * job.outputs;
  const float *frames = job.y + clip * job.y_clip;
  Pixels<2> pixels(frames + of.frame * frame_size, of.sign == 0 ? nullptr : frames + of.other * frame_size, of.sign);
  for (int64_t tile = first; tile < first + tiles; ++tile, to += columns(job)) {
    pixels.place(tile / job.tile_columns() * 2, tile % job.tile_columns() * 2, job.out_height(), job.out_width(), job.outputs);
    transform_tile(pixels, job.outputs, to, point_size, [](const Vector *y, Vector *out) {
      out[0] = y[0];
      out[1] = y[0] + y[1];
      out[2] = y[0] - y[1];
      out[3] = -y[1];
    });
  }
}

void correlate(const Winograd &job, int64_t part, int64_t parts, float *transformed) {
  const int64_t all = job.tile_rows() * job.tile_columns(), per_clip = divided_up(all, MOST_TILES);
  const int64_t size = divided_up(all, per_clip), blocks = job.batch * per_clip;
  const int64_t in_point = size * job.inputs, out_point = size * columns(job), sums = rows(job) * columns(job);
  // Behind the last tile there is room for the inputs that whole steps read in excess; where outputs end, it is zero.
  std::vector<float> inputs(POINTS * in_point + ROWS), gradients(POINTS * out_point);
  for (int64_t block = blocks * part / parts; block < blocks * (part + 1) / parts; ++block) {
    const int64_t clip = block / per_clip, first = block % per_clip * size, tiles = std::min(size, all - first);
    for (int64_t frame = 0; frame < job.frames; frame += minimal_in_time(job) ? 2 : 1) {
      const bool two = frame + 1 < job.frames;
      for (int64_t term = 0; term < (minimal_in_time(job) ? (two ? 4 : 3) : 1); ++term) {
        const Term alone = {frame, 0, 0};
        const Term input = minimal_in_time(job) ? seen(term, frame) : alone;
        const Term gradient = minimal_in_time(job) ? spread(term, frame, two) : alone;
        read_tiles(job, clip, first, tiles, input, inputs.data(), in_point);
        read_gradients(job, clip, first, tiles, gradient, gradients.data(), out_point);
        for (int64_t point = 0; point < POINTS; ++point)
          for (int64_t column = 0; column < columns(job); column += PANEL)
            for (int64_t row = 0; row < rows(job); row += ROWS)
              accumulate(transformed + (term * POINTS + point) * sums + row * columns(job) + column, columns(job),
                         inputs.data() + point * in_point + row, job.inputs, gradients.data() + point * out_point + column,
                         columns(job), tiles);
      }
    }
  }
}

// The columns of the paper's G applied to four numbers.
void kernel_taps(const Vector *points, Vector *out) {
  const Vector sum = (points[1] + points[2]) * 0.5f;
  out[0] = points[0] + sum;
  out[1] = (points[1] - points[2]) * 0.5f;
  out[2] = sum + points[3];
}

void finish(const Winograd &job, int64_t parts, const float *all, float *gradient, int64_t begin, int64_t end) {
  const int64_t size = transformed(job), sums = rows(job) * columns(job), frame_size = 9 * job.inputs * job.outputs;
  for (int64_t input = begin; input < end; ++input)
    for (int64_t output = 0; output < job.outputs; output += LANES) {
      Vector taps[4][3][3];
      for (int64_t term = 0; term < terms(job); ++term) {
        Vector by_row[4][3];
        for (int64_t row = 0; row < 4; ++row) {
          Vector points[4] = {};
          for (int64_t column = 0; column < 4; ++column)
            for (int64_t part = 0; part < parts; ++part)
              points[column] += load(all + part * size + (term * POINTS + row * 4 + column) * sums + input * columns(job) + output);
          kernel_taps(points, by_row[row]);
        }
        for (int64_t column = 0; column < 3; ++column) {
          Vector points[4] = {by_row[0][column], by_row[1][column], by_row[2][column], by_row[3][column]}, out[3];
          kernel_taps(points, out);
          for (int64_t row = 0; row < 3; ++row)
            taps[term][row][column] = out[row];
        }
      }
      for (int64_t pixel = 0; pixel < 9; ++pixel) {
        float *to = gradient + (pixel * job.inputs + input) * job.outputs + output;
        if (!minimal_in_time(job)) {
          store(to, taps[0][pixel / 3][pixel % 3]);
          continue;
        }
        Vector points[4], out[3];
        for (int64_t term = 0; term < 4; ++term)
          points[term] = taps[term][pixel / 3][pixel % 3];
        kernel_taps(points, out);
        for (int64_t frame = 0; frame < MINIMAL_FRAMES; ++frame)
          store(to + frame * frame_size, out[frame]);
      }
    }
}

} // namespace

extern const WinogradKernelGradient FAMILY = {transformed, correlate, finish};

} // namespace vireo
