//! Runs in processes of their own: this test binary starts itself with a folder in the environment.

use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use training::Checkpoint;
use video_core::seeds::{Stream, derive};

use crate::toy::{config, train};
use crate::{metrics, tensors};

const FOLDER: &str = "TRAINING_TEST_FOLDER";
const STEPS: u64 = 60;
/// Milliseconds a batch takes, two to a step: slow enough to be killed on the way.
const DELAY: u64 = 3;

/// The child's side: trains in the folder that the environment names; without one there is nothing to do.
#[test]
fn child() {
    let Some(folder) = std::env::var_os(FOLDER) else { return };
    let outcome = train(Path::new(&folder), config(STEPS), DELAY).unwrap();
    println!("stopped at {} interrupted {}", outcome.step, outcome.interrupted);
}

fn start(folder: &Path) -> Child {
    Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "processes::child", "--nocapture"])
        .env(FOLDER, folder)
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap()
}

/// Waits until a child has logged a step, which is well before its end.
fn wait_for_a_line(folder: &Path) {
    let started = Instant::now();
    while std::fs::metadata(folder.join("metrics.jsonl")).map_or(true, |file| file.len() == 0) {
        assert!(started.elapsed() < Duration::from_secs(60), "the child does not start");
        std::thread::sleep(Duration::from_millis(2));
    }
}

#[test]
fn killed_at_random_times_and_resumed_a_run_is_bit_equal() {
    let _turn = crate::turn();
    let (whole, killed) = (crate::folder(), crate::folder());
    train(whole.path(), config(STEPS), 0).unwrap();
    let mut kills = 0;
    // The draws differ from test to test run, by the clock; any of them must do.
    let draw = std::time::UNIX_EPOCH.elapsed().unwrap().as_nanos() as u64;
    for attempt in 0.. {
        let mut child = start(killed.path());
        if attempt < 6 {
            // From before the first step to near the end.
            let patience = derive(draw, Stream::Eval, attempt) % 250;
            if attempt > 0 {
                wait_for_a_line(killed.path());
            }
            std::thread::sleep(Duration::from_millis(patience));
            // SIGKILL; it may have finished already.
            child.kill().unwrap();
        }
        let status = child.wait().unwrap();
        if status.success() {
            break;
        }
        kills += 1;
        assert!(attempt < 6, "the child fails unkilled: {}", output(child));
    }
    assert!(kills > 0);
    assert!(tensors(whole.path()) == tensors(killed.path()), "weights differ after {kills} kills");
    let lines = metrics(killed.path());
    assert_eq!(metrics(whole.path()), lines, "metrics differ after {kills} kills");
    let mut keys: Vec<String> =
        lines.iter().map(|line| format!("{} {}", line["step"], line["split"])).collect();
    keys.sort();
    keys.dedup();
    assert_eq!(keys.len(), lines.len(), "no step is there twice");
}

fn output(child: Child) -> String {
    let output = child.wait_with_output().unwrap();
    String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr)
}

#[cfg(unix)]
#[test]
fn ctrl_c_and_sigterm_save_and_stop() {
    let _turn = crate::turn();
    for signal in ["-INT", "-TERM"] {
        let (whole, stopped) = (crate::folder(), crate::folder());
        let child = start(stopped.path());
        wait_for_a_line(stopped.path());
        let sent =
            Command::new("sh").args(["-c", &format!("kill {signal} {}", child.id())]).status().unwrap();
        assert!(sent.success());
        let text = output(child);
        assert!(text.contains("interrupted true") && text.contains("stopping after this step"), "{text}");
        let step = Checkpoint::load(Checkpoint::latest(stopped.path()).unwrap().unwrap()).unwrap().step();
        assert!((1..STEPS).contains(&step) && text.contains(&format!("stopped at {step}")), "{text}");
        train(whole.path(), config(STEPS), 0).unwrap();
        train(stopped.path(), config(STEPS), 0).unwrap();
        assert!(tensors(whole.path()) == tensors(stopped.path()));
        assert_eq!(metrics(whole.path()), metrics(stopped.path()));
    }
}
