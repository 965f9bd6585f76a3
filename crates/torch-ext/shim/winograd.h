// Convolutions with 3×3 kernels in space and any in time, of stride 1, by Winograd's minimal filtering (Lavin and Gray, "Fast
// Algorithms for Convolutional Neural Networks", section 4): F(2×2, 3×3) in space, 16 products where the definition takes 36,
// and for kernels of three frames F(2, 3) in time, 4 where it takes 6. The gradients take as few: they are the transposes of the
// same three transforms and one product. No header of libtorch here: what includes this is compiled for processors that others
// do not have.
#pragma once
#include <cstdint>

namespace vireo {

// A convolution. All tensors have their channels innermost.
struct Winograd {
  // Input [batch, frames + kernel_frames - 1 - missing, height, width, inputs].
  const float *x;
  // Kernel [kernel_frames, 3, 3, inputs, outputs].
  const float *weight;
  // [outputs], or null.
  const float *bias;
  // The transformed kernel: `transformed_kernel(…)` numbers, written by `transform_kernel`.
  float *kernel;
  // Output [batch, frames, height + 2 pad_rows - 2, width + 2 pad_columns - 2, outputs].
  float *y;
  int64_t batch, frames, kernel_frames, height, width, inputs, outputs, pad_rows, pad_columns;
  // Frames that the first output sees in front of x: copies of its first frame, or zeros.
  int64_t missing;
  bool repeat_first;
  // Numbers from a clip to the next, of x and y.
  int64_t x_clip, y_clip;

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
  // The gradient of the input, for kernels of one or of three frames, ADDED to y. x is the gradient of the outputs, inputs are the
  // convolution's outputs and outputs its inputs, the kernel is turned by half a turn in space, but not in time, and padding
  // is 2 less the convolution's. missing, repeat_first and frames are the convolution's.
  void (*convolve_back)(const Winograd &, int64_t begin, int64_t end);
};

// The gradient of the kernel, for kernels of one or of three frames.
struct WinogradKernelGradient {
  // Numbers of the transformed gradient.
  int64_t (*transformed)(const Winograd &);
  // Adds part `part` of `parts` of the work to a transformed gradient. y is the gradient of the outputs.
  void (*correlate)(const Winograd &, int64_t part, int64_t parts, float *transformed);
  // The gradient itself, [kernel_frames, 3, 3, inputs, outputs], of the input channels begin to end, from the sum of the parts'
  // transformed ones, which lie one behind the other.
  void (*finish)(const Winograd &, int64_t parts, const float *transformed, float *gradient, int64_t begin, int64_t end);
};

extern const WinogradKernels winograd_avx512;
extern const WinogradKernels winograd_avx2;
extern const WinogradKernelGradient winograd_kernel_gradient_avx512;
extern const WinogradKernelGradient winograd_kernel_gradient_avx2;

} // namespace vireo
