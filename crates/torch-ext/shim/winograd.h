// Convolutions with 3×3 kernels in space and any in time, of stride 1, by Winograd's minimal filtering (Lavin and Gray, "Fast
// Algorithms for Convolutional Neural Networks", section 4): F(2×2, 3×3) in space, 16 products where the definition takes 36,
// and for kernels of three frames F(2, 3) in time, 4 where it takes 6. No header of libtorch here: what includes this is
// compiled for processors that others do not have.
#pragma once
#include <cstdint>

namespace vireo {

// A convolution. All tensors have their channels innermost.
struct Winograd {
  // Input [batch, frames + kernel_frames - 1, height, width, inputs].
  const float *x;
  // Kernel [kernel_frames, 3, 3, inputs, outputs].
  const float *weight;
  // [outputs], or null.
  const float *bias;
  // The transformed kernel: `transformed_kernel(…)` numbers, written by `transform_kernel`, read by `convolve`.
  float *kernel;
  // Output [batch, frames, height + 2 pad_rows - 2, width + 2 pad_columns - 2, outputs].
  float *y;
  int64_t batch, frames, kernel_frames, height, width, inputs, outputs, pad_rows, pad_columns;

  int64_t out_height() const { return height + 2 * pad_rows - 2; }
  int64_t out_width() const { return width + 2 * pad_columns - 2; }
  int64_t tile_rows() const { return (out_height() + 1) / 2; }
  int64_t tile_columns() const { return (out_width() + 1) / 2; }
};

// What one processor family offers. Channels of input and output must be multiples of `channels`.
struct WinogradKernels {
  int64_t channels;
  // Numbers of the transformed kernel.
  int64_t (*transformed_kernel)(const Winograd &);
  // Of the input channels begin to end.
  void (*transform_kernel)(const Winograd &, int64_t begin, int64_t end);
  // Units of work, and the work of some.
  int64_t (*blocks)(const Winograd &);
  void (*convolve)(const Winograd &, int64_t begin, int64_t end);
};

extern const WinogradKernels winograd_avx512;
extern const WinogradKernels winograd_avx2;

} // namespace vireo
