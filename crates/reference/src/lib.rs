//! Parity with the reference implementations, driven by data.
//!
//! A *golden case* is a JSON file (entry, config, tolerances) beside a safetensors file (weights, inputs, the outputs that
//! the reference implementation produced). For each `entry` there is one driver, a function that rebuilds the component
//! through the same import path that a published checkpoint takes, runs it, and returns what the case lists.
//! [`verify`](verify::verify) runs any folder of cases.

pub mod case;
pub mod drivers;
pub mod import;
pub mod verify;
pub mod weights;
