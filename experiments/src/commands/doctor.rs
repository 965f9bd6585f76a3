//! `vireo doctor`: what is there, what is missing, and how to get it.

use std::process::{Command, ExitCode};

/// Prints the findings; fails if something that every run needs is missing.
pub fn doctor() -> ExitCode {
    println!("vireo        {}", env!("CARGO_PKG_VERSION"));
    println!("libtorch     {}", torch_ext::torch_version());
    println!(
        "threads      {} for one operator, {} across",
        tch::get_num_threads(),
        tch::get_num_interop_threads()
    );
    let devices = tch::Cuda::device_count();
    if devices > 0 {
        println!(
            "device       cuda: {devices} visible; cuDNN {}",
            if tch::Cuda::cudnn_is_available() { "yes" } else { "no" }
        );
    } else {
        println!("device       cpu (for a GPU: ./bootstrap.sh --cuda)");
    }
    let sum = tch::Tensor::from_slice(&[1.0f32, 2.0]).sum(tch::Kind::Float).double_value(&[]);
    println!(
        "tensors      {}",
        if sum == 3.0 { "compute" } else { "DO NOT COMPUTE: the libtorch build is broken" }
    );
    let ffmpeg = match video_data::ffmpeg_path() {
        Ok(path) => {
            let version =
                Command::new(&path).arg("-version").output().ok().and_then(|output| {
                    String::from_utf8_lossy(&output.stdout).lines().next().map(str::to_owned)
                });
            match version {
                Some(version) => {
                    println!("ffmpeg       {} ({})", version, path.display());
                    true
                }
                None => {
                    println!(
                        "ffmpeg       {} does not run: set VIREO_FFMPEG to one that does",
                        path.display()
                    );
                    false
                }
            }
        }
        Err(error) => {
            println!("ffmpeg       missing: {error}");
            false
        }
    };
    let free = fs_free();
    println!("disk         {free} free in this folder");
    if ffmpeg && sum == 3.0 { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

fn fs_free() -> String {
    match fs4::available_space(".") {
        Ok(bytes) => format!("{:.1} GB", bytes as f64 / 1e9),
        Err(error) => format!("unknown ({error})"),
    }
}
