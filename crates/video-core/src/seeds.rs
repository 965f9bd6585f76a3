//! Seeds: every random draw of a run comes from (run seed, stream, step), so that a resumed run draws what an
//! uninterrupted one would have drawn, and one consumer's draws never shift another's.

/// What a stream of draws is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u64)]
pub enum Stream {
    /// Weights at the start.
    Init = 1,
    /// Which clips, and how they are cut and flipped.
    Data = 2,
    /// Noise, dropout and restarts inside a training step.
    Step = 3,
    /// Held-out clips.
    Eval = 4,
    /// Samples of a generator.
    Sample = 5,
}

/// A seed for one step of one stream of a run. Neighbouring arguments give unrelated seeds.
pub fn derive(run_seed: u64, stream: Stream, step: u64) -> u64 {
    mix(mix(mix(run_seed) ^ stream as u64) ^ step)
}

/// Seeds libtorch's global generators, of the CPU and of all GPUs, for one step of one stream.
pub fn seed_torch(run_seed: u64, stream: Stream, step: u64) {
    tch::manual_seed(derive(run_seed, stream, step) as i64);
}

/// SplitMix64's finaliser (Steele et al., 2014): a bijection in which every input bit moves every output bit.
fn mix(value: u64) -> u64 {
    let mut z = value.wrapping_add(0x9E37_79B9_7F4A_7C15);
    z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    z ^ (z >> 31)
}
