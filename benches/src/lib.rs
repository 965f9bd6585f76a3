//! What the benches share.

use std::process::Command;

/// The argument by which a bench's program is told to do one thing and print its peak memory.
const PEAK: &str = "--peak-memory-of";

/// In a process that [`peak_memory`] started: does the named work and ends the process. In any other process: nothing.
///
/// To be called first in a bench's `main`. `prepare` runs before memory is first read, so that libraries are loaded and
/// their buffers exist.
pub fn answer_peak_memory(prepare: impl FnOnce(), work: impl FnOnce(&str)) {
    let mut arguments = std::env::args().skip_while(|argument| argument != PEAK).skip(1);
    let Some(name) = arguments.next() else {
        return;
    };
    prepare();
    let before = status_bytes("VmRSS");
    work(&name);
    println!("{}", status_bytes("VmHWM").saturating_sub(before));
    std::process::exit(0);
}

/// The bytes by which the work of this name raises the resident memory of a process of its own, at its peak. The process
/// is this program again, which answers in [`answer_peak_memory`]. Linux.
///
/// # Panics
/// The process cannot be started, or fails.
pub fn peak_memory(name: &str) -> u64 {
    let program = std::env::current_exe().expect("the path of this program");
    let output = Command::new(program).args([PEAK, name]).output().expect("a second process");
    assert!(output.status.success(), "{name}: {}", String::from_utf8_lossy(&output.stderr));
    let text = String::from_utf8_lossy(&output.stdout);
    text.trim().parse().unwrap_or_else(|_| panic!("{name} answered {text:?}"))
}

/// A line of `/proc/self/status`, in bytes.
fn status_bytes(key: &str) -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").expect("/proc/self/status");
    let line = status.lines().find_map(|line| line.strip_prefix(key)?.strip_prefix(':'));
    let kilobytes = line.and_then(|rest| rest.split_whitespace().next()).and_then(|n| n.parse::<u64>().ok());
    1024 * kilobytes.unwrap_or_else(|| panic!("no {key} in /proc/self/status"))
}
