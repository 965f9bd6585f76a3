// Winograd's convolutions on libtorch's tensors, with gradients. Functions return as those of shim.cpp.
#include <ATen/ATen.h>
#include <ATen/Parallel.h>
#include <ATen/TensorIterator.h>
#include <ATen/autocast_mode.h>
#include <c10/core/GradMode.h>
#include <torch/csrc/autograd/custom_function.h>
#include <optional>
#include <vector>

#include "guarded.h"
#include "winograd.h"

namespace {

struct Kernels {
  const vireo::WinogradKernels *outputs;
  const vireo::WinogradKernelGradient *kernel_gradient;
};

// Null where the processor has not what they need.
Kernels kernels() {
#if defined(__x86_64__)
  if (__builtin_cpu_supports("avx512f"))
    return {&vireo::winograd_avx512, &vireo::winograd_kernel_gradient_avx512};
  if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma"))
    return {&vireo::winograd_avx2, &vireo::winograd_kernel_gradient_avx2};
#endif
  return {nullptr, nullptr};
}

// Calls body(begin, end) for parts of 0 .. count on libtorch's own threads. A second pool would compete with them, and
// at::parallel_for is header code for the OpenMP of whoever includes it; the iterator's loop stands in the library.
template <typename F> void in_parallel(int64_t count, F &&body) {
  auto indices = at::empty({count}, at::kChar);
  const char *first = static_cast<const char *>(indices.const_data_ptr());
  at::TensorIterator::nullary_op(indices).for_each(
      [&](char **data, const int64_t *, int64_t n) { body(data[0] - first, data[0] - first + n); },
      /*grain_size=*/1);
}

// A kernel [out, in, kt, 3, 3] as [kt, 3, 3, in, out].
at::Tensor taps_first(const at::Tensor &weight) { return weight.permute({2, 3, 4, 1, 0}).contiguous(); }

// Sets the kernel, and with it the channels; gives what must outlive the job.
at::Tensor set_kernel(vireo::Winograd &job, const at::Tensor &taps) {
  job.kernel_frames = taps.size(0);
  job.inputs = taps.size(3);
  job.outputs = taps.size(4);
  job.weight = taps.const_data_ptr<float>();
  auto kernel = at::empty({kernels().outputs->transformed_kernel(job)}, taps.options());
  job.kernel = kernel.mutable_data_ptr<float>();
  in_parallel(job.inputs, [&](int64_t begin, int64_t end) { kernels().outputs->transform_kernel(job, begin, end); });
  return kernel;
}

void check(const at::Tensor &x, const at::Tensor &weight, const at::Tensor &bias, at::IntArrayRef padding) {
  auto fits = [](const at::Tensor &t, int64_t axes) {
    return t.dim() == axes && t.device().is_cpu() && t.scalar_type() == at::kFloat && t.numel() > 0;
  };
  TORCH_CHECK(kernels().outputs, "this processor has neither AVX-512 nor AVX2");
  TORCH_CHECK(fits(x, 5) && fits(weight, 5) && (!bias.defined() || fits(bias, 1)), "expected float32 on the CPU");
  TORCH_CHECK(weight.size(1) == x.size(1) && weight.size(3) == 3 && weight.size(4) == 3 &&
                  (!bias.defined() || bias.size(0) == weight.size(0)) && padding[0] >= 0 && padding[1] >= 0 &&
                  x.size(3) + 2 * padding[0] > 2 && x.size(4) + 2 * padding[1] > 2,
              "kernel ", weight.sizes(), " does not fit an input of ", x.sizes());
  TORCH_CHECK(weight.size(0) % kernels().outputs->channels == 0 && weight.size(1) % kernels().outputs->channels == 0,
              "channels must be multiples of ", kernels().outputs->channels);
}

// All of a job but its kernel, for clips of so many frames of x and of y.
vireo::Winograd job_of(const at::Tensor &x, int64_t frames, at::IntArrayRef padding) {
  vireo::Winograd job{};
  job.batch = x.size(0);
  job.frames = frames;
  job.height = x.size(3);
  job.width = x.size(4);
  job.pad_rows = padding[0];
  job.pad_columns = padding[1];
  job.x = x.const_data_ptr<float>();
  job.x_clip = x.numel() / job.batch;
  return job;
}

at::Tensor outputs_of(const vireo::Winograd &job, int64_t channels, const at::Tensor &x) {
  return at::empty({job.batch, channels, job.frames, job.out_height(), job.out_width()}, x.options(),
                   at::MemoryFormat::ChannelsLast3d);
}

// A causal convolution of whole clips: a kernel of one frame, frame by frame; or one of three, with two frames in front of the
// clip that are zeros or copies of its first frame. Of these the first output sees nothing new, so that one frame does for
// its kernel too.
struct Causal {
  at::Tensor x;
  // [kt, 3, 3, in, out].
  at::Tensor taps;
  std::vector<int64_t> padding;
  bool repeat_first;

  int64_t frames() const { return x.size(2); }
  bool sees_the_past() const { return taps.size(0) == 3; }
  // The kernel for the first frame.
  at::Tensor first_taps() const { return repeat_first ? taps.sum(0, /*keepdim=*/true) : taps.narrow(0, 2, 1).contiguous(); }

  // Calls run(job, taps, frame of y at which it starts) for the first frame and for the others, or for all together.
  template <typename Run> void each_job(const vireo::Winograd &all, Run run) const {
    if (!sees_the_past())
      return run(all, taps, 0);
    vireo::Winograd first = all, others = all;
    first.frames = 1;
    run(first, first_taps(), 0);
    others.frames = all.frames - 1;
    others.missing = 1;
    others.repeat_first = repeat_first;
    if (others.frames > 0)
      run(others, taps, 1);
  }

  at::Tensor forward(const at::Tensor &bias) const {
    auto all = job_of(x, frames(), padding);
    const int64_t channels = taps.size(4), frame_size = all.out_height() * all.out_width() * channels;
    auto y = outputs_of(all, channels, x);
    all.y_clip = frames() * frame_size;
    all.bias = bias.defined() ? bias.const_data_ptr<float>() : nullptr;
    each_job(all, [&](vireo::Winograd job, const at::Tensor &taps, int64_t start) {
      job.y = y.mutable_data_ptr<float>() + start * frame_size;
      auto kernel = set_kernel(job, taps);
      in_parallel(kernels().outputs->blocks(job),
                  [&](int64_t begin, int64_t end) { kernels().outputs->convolve(job, begin, end); });
    });
    return y;
  }

  // The gradient of x.
  at::Tensor back(const at::Tensor &gradient) const {
    const int64_t frame_size = gradient.size(1) * gradient.size(3) * gradient.size(4);
    const auto all = job_of(gradient, frames(), {2 - padding[0], 2 - padding[1]});
    auto out = at::zeros_like(x, at::MemoryFormat::ChannelsLast3d);
    each_job(all, [&](vireo::Winograd job, const at::Tensor &taps, int64_t start) {
      job.x += start * frame_size;
      job.y = out.mutable_data_ptr<float>();
      job.y_clip = out.numel() / job.batch;
      auto turned = taps.flip({1, 2}).transpose(3, 4).contiguous();
      auto kernel = set_kernel(job, turned);
      in_parallel(kernels().outputs->blocks(job),
                  [&](int64_t begin, int64_t end) { kernels().outputs->convolve_back(job, begin, end); });
    });
    return out;
  }

  // The gradient of the kernel [out, in, kt, 3, 3].
  at::Tensor kernel_gradient(const at::Tensor &gradient) const {
    const int64_t frame_size = gradient.size(1) * gradient.size(3) * gradient.size(4);
    auto sum = at::zeros_like(taps);
    each_job(job_of(x, frames(), padding), [&](vireo::Winograd job, const at::Tensor &taps, int64_t start) {
      const auto &run = *kernels().kernel_gradient;
      job.kernel_frames = taps.size(0);
      job.inputs = taps.size(3);
      job.outputs = taps.size(4);
      // What is read only.
      job.y = const_cast<float *>(gradient.const_data_ptr<float>()) + start * frame_size;
      job.y_clip = gradient.numel() / job.batch;
      // As many parts as threads, always the same ones: the sum does not depend on who was first.
      const int64_t parts = at::get_num_threads(), size = run.transformed(job);
      auto transformed = at::zeros({parts, size}, x.options());
      auto *numbers = transformed.mutable_data_ptr<float>();
      in_parallel(parts, [&](int64_t begin, int64_t end) {
        for (int64_t part = begin; part < end; ++part)
          run.correlate(job, part, parts, numbers + part * size);
      });
      auto part_sum = at::empty_like(taps);
      in_parallel(job.inputs, [&](int64_t begin, int64_t end) {
        run.finish(job, parts, numbers, part_sum.mutable_data_ptr<float>(), begin, end);
      });
      if (start > 0 || !sees_the_past() || repeat_first)
        sum.add_(part_sum);
      else
        sum.narrow(0, 2, 1).add_(part_sum);
    });
    return sum.permute({4, 3, 0, 1, 2});
  }
};

Causal causal(const at::Tensor &x, const at::Tensor &weight, at::IntArrayRef padding, bool repeat_first) {
  return {x.contiguous(at::MemoryFormat::ChannelsLast3d), taps_first(weight), padding.vec(), repeat_first};
}

// The gradients by operators that have gradients themselves.
std::vector<at::Tensor> differentiable_gradients(const at::Tensor &gradient, const at::Tensor &x, const at::Tensor &weight,
                                                 at::IntArrayRef padding, bool repeat_first, bool with_bias) {
  const int64_t before = weight.size(2) - 1;
  auto first = x.narrow(2, 0, 1).expand({-1, -1, before, -1, -1});
  auto extended = before == 0 ? x : at::cat({repeat_first ? first : at::zeros_like(first), x}, 2);
  auto [of_extended, of_weight, of_bias] =
      at::convolution_backward(gradient, extended, weight, at::OptionalIntArrayRef({weight.size(0)}), {1, 1, 1},
                               {0, padding[0], padding[1]}, {1, 1, 1}, false, {0, 0, 0}, 1, {true, true, with_bias});
  auto of_x = of_extended.narrow(2, before, x.size(2));
  if (before > 0 && repeat_first)
    of_x = of_x + at::constant_pad_nd(of_extended.narrow(2, 0, before).sum(2, true), {0, 0, 0, 0, 0, x.size(2) - 1});
  return {of_x, of_weight, of_bias};
}

struct CausalFunction : torch::autograd::Function<CausalFunction> {
  static at::Tensor forward(torch::autograd::AutogradContext *context, const at::Tensor &x, const at::Tensor &weight,
                            const std::optional<at::Tensor> &bias, std::vector<int64_t> padding, bool repeat_first) {
    context->save_for_backward({x, weight});
    context->saved_data["padding"] = padding;
    context->saved_data["repeat_first"] = repeat_first;
    context->saved_data["with_bias"] = bias.has_value();
    return causal(x, weight, padding, repeat_first).forward(bias ? bias->contiguous() : at::Tensor());
  }

  static torch::autograd::variable_list backward(torch::autograd::AutogradContext *context,
                                                 torch::autograd::variable_list gradients) {
    const auto saved = context->get_saved_variables();
    const auto padding = context->saved_data["padding"].toIntVector();
    const bool repeat_first = context->saved_data["repeat_first"].toBool();
    const bool with_bias = context->saved_data["with_bias"].toBool();
    std::vector<at::Tensor> out;
    if (c10::GradMode::is_enabled()) {
      out = differentiable_gradients(gradients[0], saved[0], saved[1], padding, repeat_first, with_bias);
    } else {
      const auto job = causal(saved[0], saved[1], padding, repeat_first);
      const auto gradient = gradients[0].contiguous(at::MemoryFormat::ChannelsLast3d);
      out = {context->needs_input_grad(0) ? job.back(gradient) : at::Tensor(),
             context->needs_input_grad(1) ? job.kernel_gradient(gradient) : at::Tensor(),
             with_bias ? gradient.sum({0, 2, 3, 4}) : at::Tensor()};
    }
    return {out[0], out[1], out[2], at::Tensor(), at::Tensor()};
  }
};

} // namespace

extern "C" {

int64_t vireo_winograd_channels() { return kernels().outputs ? kernels().outputs->channels : 0; }

char *vireo_winograd(at::Tensor *input, at::Tensor *weight, at::Tensor *bias, int64_t pad_rows, int64_t pad_columns,
                     at::Tensor **out) {
  return vireo::guarded([&] {
    c10::AutoGradMode no_grad(false);
    auto b = bias ? bias->contiguous() : at::Tensor();
    check(*input, *weight, b, {pad_rows, pad_columns});
    auto x = input->contiguous(at::MemoryFormat::ChannelsLast3d);
    auto taps = taps_first(*weight);
    auto job = job_of(x, x.size(2) - taps.size(0) + 1, {pad_rows, pad_columns});
    TORCH_CHECK(job.frames > 0, "kernel ", weight->sizes(), " has more frames than an input of ", x.sizes());
    auto y = outputs_of(job, taps.size(4), x);
    job.bias = bias ? b.const_data_ptr<float>() : nullptr;
    job.y = y.mutable_data_ptr<float>();
    job.y_clip = y.numel() / job.batch;
    auto kernel = set_kernel(job, taps);
    in_parallel(kernels().outputs->blocks(job),
                [&](int64_t begin, int64_t end) { kernels().outputs->convolve(job, begin, end); });
    *out = new at::Tensor(y);
  });
}

char *vireo_winograd_causal(at::Tensor *input, at::Tensor *weight, at::Tensor *bias, int64_t pad_rows, int64_t pad_columns,
                            int repeat_first, at::Tensor **out) {
  return vireo::guarded([&] {
    auto b = bias ? std::optional(*bias) : std::nullopt;
    check(*input, *weight, b.value_or(at::Tensor()), {pad_rows, pad_columns});
    TORCH_CHECK(weight->size(2) == 1 || weight->size(2) == 3, "expected a kernel of one or of three frames, got ",
                weight->size(2));
    TORCH_CHECK(pad_rows <= 2 && pad_columns <= 2, "expected a padding of 0 to 2, got ", pad_rows, " and ", pad_columns);
    TORCH_CHECK(!at::autocast::is_autocast_enabled(at::kCPU), "autocast asks for another kind");
    *out = new at::Tensor(CausalFunction::apply(*input, *weight, b, std::vector<int64_t>{pad_rows, pad_columns}, repeat_first != 0));
  });
}
}
