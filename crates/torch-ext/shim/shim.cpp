// What libtorch has and `tch` does not bind.
// Every function returns null (or nothing) on success and a malloc'ed message on failure. The caller frees the message with
// vireo_free_message.
#include <ATen/ATen.h>
#include <ATen/CPUGeneratorImpl.h>
#include <ATen/Context.h>
#include <ATen/autocast_mode.h>
#include <c10/core/GradMode.h>
#include <ATen/ops/_fused_adamw.h>
#include <cstdlib>
#include <mutex>
#include <torch/version.h>
#include <vector>

#include "guarded.h"

using vireo::guarded;

namespace {
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
} // namespace

extern "C" {

void vireo_free_message(char *message) { free(message); }

void vireo_exit(int status) { std::_Exit(status); }

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
}
