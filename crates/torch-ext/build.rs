//! Compiles the C++ shim against the same libtorch that `torch-sys` links.
use std::path::PathBuf;

fn main() {
    println!("cargo:rerun-if-changed=shim");
    println!("cargo:rerun-if-env-changed=LIBTORCH");
    println!("cargo:rerun-if-env-changed=LIBTORCH_INCLUDE");
    println!("cargo:rerun-if-env-changed=LIBTORCH_CXX11_ABI");

    // LIBTORCH_INCLUDE serves split installations (distribution packages), as it does for torch-sys.
    let root = std::env::var_os("LIBTORCH_INCLUDE")
        .or_else(|| std::env::var_os("LIBTORCH"))
        .map(PathBuf::from)
        // torch-sys found a system-wide or a downloaded library; headers stand beside its lib folder.
        .or_else(|| {
            std::env::var_os("DEP_TCH_LIBTORCH_LIB").and_then(|lib| Some(PathBuf::from(lib).parent()?.into()))
        })
        .unwrap_or_else(|| PathBuf::from("/usr"));
    let include = root.join("include");
    if !include.join("torch/csrc").is_dir() && !include.join("ATen").is_dir() {
        eprintln!(
            "error: no libtorch headers in {}: run ./bootstrap.sh once, or set LIBTORCH to a libtorch folder",
            include.display()
        );
        std::process::exit(1);
    }
    let abi = std::env::var("LIBTORCH_CXX11_ABI").unwrap_or_else(|_| "1".into());
    cc::Build::new()
        .cpp(true)
        .std("c++20")
        .pic(true)
        .warnings(false)
        .include(&include)
        .include(include.join("torch/csrc/api/include"))
        .define("_GLIBCXX_USE_CXX11_ABI", abi.as_str())
        .files(["shim/shim.cpp", "shim/winograd_tensors.cpp"])
        .compile("vireo_torch_ext");
    if std::env::var("CARGO_CFG_TARGET_ARCH").is_ok_and(|arch| arch == "x86_64") {
        winograd("avx512", "-mavx512f", 16);
        winograd("avx2", "-mavx2", 8);
    }
}

/// Compiles the convolutions for one family of processors. The shim asks the processor before it calls them.
fn winograd(family: &str, instructions: &str, lanes: u32) {
    for part in ["winograd", "winograd_kernel_gradient"] {
        winograd_part(part, family, instructions, lanes);
    }
}

fn winograd_part(part: &str, family: &str, instructions: &str, lanes: u32) {
    let name = format!("{part}_{family}");
    cc::Build::new()
        .cpp(true)
        .std("c++20")
        .pic(true)
        // Of use in debug builds too: without optimisation it would be slower than what it replaces.
        .opt_level(3)
        .flag(instructions)
        .flag("-mfma")
        .flag("-ffp-contract=fast")
        .define("LANES", lanes.to_string().as_str())
        .define("FAMILY", name.as_str())
        .file(format!("shim/{part}.cpp"))
        .compile(&format!("vireo_{name}"));
}
