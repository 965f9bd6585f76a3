//! What is fast on a device.

use std::sync::LazyLock;

use tch::Device;

/// Whether bfloat16 is faster than float32 there: on CUDA devices, and on CPUs with instructions for it (AVX-512 BF16, which those
/// with AMX have too; on ARM `bf16`). Other CPUs emulate it slowly.
pub fn multiplies_bf16(device: Device) -> bool {
    match device {
        Device::Cuda(_) => true,
        #[cfg(target_arch = "x86_64")]
        Device::Cpu => std::arch::is_x86_feature_detected!("avx512bf16"),
        #[cfg(target_arch = "aarch64")]
        Device::Cpu => std::arch::is_aarch64_feature_detected!("bf16"),
        _ => false,
    }
}

/// Whether libtorch's float32 matrix products run far below what the device can do: on x86-64 CPUs that are not Intel's, where
/// MKL leaves half of their speed. Convolutions, which oneDNN computes, do not suffer from it.
pub fn has_slow_matmul(device: Device) -> bool {
    static NOT_INTEL: LazyLock<bool> = LazyLock::new(|| {
        #[cfg(target_arch = "x86_64")]
        {
            // The vendor's name, in the registers' odd order.
            let vendor = std::arch::x86_64::__cpuid(0);
            [vendor.ebx, vendor.edx, vendor.ecx].map(u32::to_le_bytes).concat() != b"GenuineIntel"
        }
        #[cfg(not(target_arch = "x86_64"))]
        false
    });
    device == Device::Cpu && *NOT_INTEL
}
