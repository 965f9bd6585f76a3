//! Memory that does not grow with the clip.

use std::path::Path;

use crate::{trained, write_video};

/// The most memory that `vireo encode` ever had, in kilobytes, as the kernel counts it.
fn peak_memory(video: &Path) -> f64 {
    let output = std::process::Command::new("sh")
        .arg("-c")
        .arg("\"$@\" >/dev/null & child=$!; peak=0; while now=$(grep VmHWM /proc/$child/status 2>/dev/null); do peak=$now; sleep 0.005; done; wait $child || exit 1; echo $peak")
        .arg("sh")
        .arg(assert_cmd::cargo::cargo_bin("vireo"))
        .args(["--threads", "1", "encode"])
        .arg(video)
        .arg("--checkpoint")
        .arg(trained())
        .args(["--output"])
        .arg(video.with_extension("vtok"))
        .output()
        .unwrap();
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    text.split_whitespace()
        .nth(1)
        .and_then(|word| word.parse().ok())
        .unwrap_or_else(|| panic!("no VmHWM in {text:?}"))
}

#[cfg(target_os = "linux")]
#[test]
fn two_thousand_frames_take_no_more_memory_than_two_hundred() {
    let folder = tempfile::tempdir().unwrap();
    let (short, long) = (folder.path().join("short.mp4"), folder.path().join("long.mp4"));
    write_video(&short, 201, 64, 64);
    write_video(&long, 2001, 64, 64);
    let (short, long) = (peak_memory(&short), peak_memory(&long));
    println!("peak memory: {short} kB for 201 frames, {long} kB for 2,001: {:.3} times", long / short);
    assert!(long < 1.1 * short, "{short} kB for 201 frames, {long} kB for 2,001");
}
