// What libtorch has and `tch` does not bind, and the door to winograd.cpp.
// Every function returns null (or nothing) on success and a malloc'ed message on failure, so that no
// C++ exception ever crosses into Rust. The caller frees the message with vireo_free_message.
#include <ATen/ATen.h>
#include <ATen/CPUGeneratorImpl.h>
#include <ATen/Context.h>
#include <ATen/TensorIterator.h>
#include <ATen/autocast_mode.h>
#include <c10/core/GradMode.h>
#include <ATen/ops/_fused_adamw.h>
#include <cstring>
#include <exception>
#include <mutex>
#include <torch/version.h>
#include <vector>

#include "winograd.h"

namespace {
template <typename F> char *guarded(F &&body) {
  try {
    body();
    return nullptr;
  } catch (const c10::Error &e) {
    return strdup(e.what_without_backtrace());
  } catch (const std::exception &e) {
    return strdup(e.what());
  } catch (...) {
    return strdup("unknown C++ exception");
  }
}

std::vector<at::Tensor> tensor_list(at::Tensor **tensors, size_t count) {
  std::vector<at::Tensor> list;
  list.reserve(count);
  for (size_t i = 0; i < count; ++i)
    list.push_back(*tensors[i]);
  return list;
}

at::MemoryFormat memory_format(int code) {
  switch (code) {
  case 0:
    return at::MemoryFormat::Contiguous;
  case 1:
    return at::MemoryFormat::ChannelsLast;
  case 2:
    return at::MemoryFormat::ChannelsLast3d;
  default:
    TORCH_CHECK(false, "unknown memory format code ", code);
  }
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

// Null where the processor has not what they need.
const vireo::WinogradKernels *winograd_kernels() {
#if defined(__x86_64__)
  if (__builtin_cpu_supports("avx512f"))
    return &vireo::winograd_avx512;
  if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma"))
    return &vireo::winograd_avx2;
#endif
  return nullptr;
}
} // namespace

extern "C" {

void vireo_free_message(char *message) { free(message); }

const char *vireo_torch_version() { return TORCH_VERSION; }

char *vireo_contiguous(at::Tensor *tensor, int format, at::Tensor **out) {
  return guarded([&] { *out = new at::Tensor(tensor->contiguous(memory_format(format))); });
}

char *vireo_is_contiguous(at::Tensor *tensor, int format, int *out) {
  return guarded([&] { *out = tensor->is_contiguous(memory_format(format)) ? 1 : 0; });
}

char *vireo_fused_adamw(at::Tensor **params, at::Tensor **grads, at::Tensor **exp_avgs,
                        at::Tensor **exp_avg_sqs, at::Tensor **steps, size_t count, double lr,
                        double beta1, double beta2, double weight_decay, double eps) {
  return guarded([&] {
    c10::AutoGradMode no_grad(false);
    auto p = tensor_list(params, count);
    auto g = tensor_list(grads, count);
    auto m = tensor_list(exp_avgs, count);
    auto v = tensor_list(exp_avg_sqs, count);
    auto s = tensor_list(steps, count);
    // The fused kernel reads the step count after the update, as torch.optim does.
    at::_foreach_add_(s, 1);
    at::_fused_adamw_(p, g, m, v, /*max_exp_avg_sqs=*/{}, s, lr, beta1, beta2, weight_decay, eps,
                      /*amsgrad=*/false, /*maximize=*/false);
  });
}

char *vireo_clear_gradients(at::Tensor **tensors, size_t count) {
  return guarded([&] {
    for (size_t i = 0; i < count; ++i)
      tensors[i]->mutable_grad().reset();
  });
}

char *vireo_autocast_enter(int device_type, int *was_enabled, int *previous_dtype) {
  return guarded([&] {
    auto device = static_cast<at::DeviceType>(device_type);
    *was_enabled = at::autocast::is_autocast_enabled(device) ? 1 : 0;
    *previous_dtype = static_cast<int>(at::autocast::get_autocast_dtype(device));
    at::autocast::set_autocast_dtype(device, at::kBFloat16);
    at::autocast::set_autocast_enabled(device, true);
    at::autocast::increment_nesting();
  });
}

char *vireo_autocast_leave(int device_type, int was_enabled, int previous_dtype) {
  return guarded([&] {
    auto device = static_cast<at::DeviceType>(device_type);
    // The cache holds the weights' bfloat16 copies; they are stale after the next optimizer step.
    if (at::autocast::decrement_nesting() == 0)
      at::autocast::clear_cache();
    at::autocast::set_autocast_enabled(device, was_enabled != 0);
    at::autocast::set_autocast_dtype(device, static_cast<at::ScalarType>(previous_dtype));
  });
}

char *vireo_global_norm(at::Tensor **tensors, size_t count, at::Tensor **out) {
  return guarded([&] {
    c10::AutoGradMode no_grad(false);
    auto norms = at::_foreach_norm(tensor_list(tensors, count), 2);
    *out = new at::Tensor(at::linalg_vector_norm(at::stack(norms)));
  });
}

char *vireo_scale_in_place(at::Tensor **tensors, size_t count, at::Tensor *factor) {
  return guarded([&] {
    c10::AutoGradMode no_grad(false);
    at::_foreach_mul_(tensor_list(tensors, count), *factor);
  });
}

char *vireo_lerp_in_place(at::Tensor **targets, at::Tensor **sources, size_t count, double weight) {
  return guarded([&] {
    c10::AutoGradMode no_grad(false);
    at::_foreach_lerp_(tensor_list(targets, count), tensor_list(sources, count), weight);
  });
}

char *vireo_rng_state(int device_type, int device_index, at::Tensor **out) {
  return guarded([&] {
    auto device = at::Device(static_cast<at::DeviceType>(device_type),
                             static_cast<at::DeviceIndex>(device_index));
    auto generator = at::globalContext().defaultGenerator(device);
    std::lock_guard<std::mutex> lock(generator.mutex());
    *out = new at::Tensor(generator.get_state());
  });
}

char *vireo_set_rng_state(int device_type, int device_index, at::Tensor *state) {
  return guarded([&] {
    auto device = at::Device(static_cast<at::DeviceType>(device_type),
                             static_cast<at::DeviceIndex>(device_index));
    auto generator = at::globalContext().defaultGenerator(device);
    std::lock_guard<std::mutex> lock(generator.mutex());
    generator.set_state(*state);
  });
}

int64_t vireo_winograd_channels() {
  auto kernels = winograd_kernels();
  return kernels ? kernels->channels : 0;
}

char *vireo_winograd(at::Tensor *input, at::Tensor *weight, at::Tensor *bias, int64_t pad_rows,
                     int64_t pad_columns, at::Tensor **out) {
  return guarded([&] {
    c10::AutoGradMode no_grad(false);
    auto kernels = winograd_kernels();
    TORCH_CHECK(kernels, "this processor has neither AVX-512 nor AVX2");
    auto fits = [](const at::Tensor &t, int64_t axes) {
      return t.dim() == axes && t.device().is_cpu() && t.scalar_type() == at::kFloat && t.numel() > 0;
    };
    TORCH_CHECK(fits(*input, 5) && fits(*weight, 5) && (!bias || fits(*bias, 1)), "expected float32 on the CPU");
    TORCH_CHECK(weight->size(1) == input->size(1) && weight->size(3) == 3 && weight->size(4) == 3 &&
                    (!bias || bias->size(0) == weight->size(0)),
                "kernel ", weight->sizes(), " does not fit an input of ", input->sizes());
    TORCH_CHECK(weight->size(0) % kernels->channels == 0 && weight->size(1) % kernels->channels == 0,
                "channels must be multiples of ", kernels->channels);
    auto x = input->contiguous(at::MemoryFormat::ChannelsLast3d);
    auto w = weight->permute({2, 3, 4, 1, 0}).contiguous();
    auto b = bias ? bias->contiguous() : at::Tensor();
    vireo::Winograd job{};
    job.batch = x.size(0);
    job.inputs = x.size(1);
    job.kernel_frames = w.size(0);
    job.frames = x.size(2) - job.kernel_frames + 1;
    job.height = x.size(3);
    job.width = x.size(4);
    job.outputs = w.size(4);
    job.pad_rows = pad_rows;
    job.pad_columns = pad_columns;
    TORCH_CHECK(pad_rows >= 0 && pad_columns >= 0 && job.frames > 0 && job.out_height() > 0 && job.out_width() > 0,
                "kernel ", weight->sizes(), " is larger than an input of ", input->sizes());
    auto y = at::empty({job.batch, job.outputs, job.frames, job.out_height(), job.out_width()}, x.options(),
                       at::MemoryFormat::ChannelsLast3d);
    auto kernel = at::empty({kernels->transformed_kernel(job)}, x.options());
    job.x = x.const_data_ptr<float>();
    job.weight = w.const_data_ptr<float>();
    job.bias = bias ? b.const_data_ptr<float>() : nullptr;
    job.kernel = kernel.mutable_data_ptr<float>();
    job.y = y.mutable_data_ptr<float>();
    in_parallel(job.inputs, [&](int64_t begin, int64_t end) { kernels->transform_kernel(job, begin, end); });
    in_parallel(kernels->blocks(job), [&](int64_t begin, int64_t end) { kernels->convolve(job, begin, end); });
    *out = new at::Tensor(y);
  });
}
}
