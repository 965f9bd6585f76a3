//! What a person sees: a bar with rate and time left on a terminal, else a line every ten seconds.

use std::io::IsTerminal;
use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressStyle};

const BETWEEN_LINES: Duration = Duration::from_secs(10);

/// The bar, or the clock of the lines.
pub(crate) struct Progress {
    bar: Option<ProgressBar>,
    steps: u64,
    first_step: u64,
    started: Instant,
    last_line: Instant,
    losses: String,
}

impl Progress {
    pub fn new(first_step: u64, steps: u64) -> Self {
        let bar = std::io::stderr().is_terminal().then(|| {
            let style = "{bar:30} {pos}/{len} steps, {per_sec}, {eta} left  {msg}";
            let bar = ProgressBar::new(steps).with_position(first_step);
            bar.reset_eta();
            bar.with_style(
                ProgressStyle::with_template(style).unwrap_or_else(|_| ProgressStyle::default_bar()),
            )
        });
        let now = Instant::now();
        Self { bar, steps, first_step, started: now, last_line: now, losses: String::new() }
    }

    /// The losses that were read back last.
    pub fn losses<'a>(&mut self, totals: impl Iterator<Item = (&'a str, f64)>) {
        self.losses = totals.map(|(name, value)| format!("{name} {value:.4}")).collect::<Vec<_>>().join("  ");
        if let Some(bar) = &self.bar {
            bar.set_message(self.losses.clone());
        }
    }

    /// After a step.
    pub fn tick(&mut self, done: u64) {
        if let Some(bar) = &self.bar {
            bar.set_position(done);
        } else if self.last_line.elapsed() >= BETWEEN_LINES {
            self.last_line = Instant::now();
            let rate = (done - self.first_step) as f64 / self.started.elapsed().as_secs_f64();
            let left = (self.steps - done) as f64 / rate;
            tracing::info!(
                "step {done}/{}, {rate:.2} steps/s, {left:.0} s left  {}",
                self.steps,
                self.losses
            );
        }
    }

    /// Leaves the bar as it stands.
    pub fn finish(&self) {
        if let Some(bar) = &self.bar {
            bar.abandon();
        }
    }
}
