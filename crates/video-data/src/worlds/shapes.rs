//! Moving textured shapes: a synthetic world whose every clip is known exactly.
//!
//! Two to four discs, squares and rings, each with a colour, a stripe texture, a position, a velocity and a depth, bounce
//! off the border over a slowly shaded background; nearer ones occlude farther ones. Edges are antialiased, so that sizes
//! and speeds below a pixel are visible.

use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;

/// The kind of a shape.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// A filled disc.
    Disc,
    /// A filled square, turned by its angle.
    Square,
    /// A ring half as thick as its radius.
    Ring,
}

/// One shape: ground truth. Lengths are in shares of the picture's shorter side.
#[derive(Clone, Debug)]
pub struct Shape {
    /// What it is.
    pub kind: Kind,
    /// Centre at frame 0, (x, y), 0 to 1.
    pub position: (f64, f64),
    /// Motion per frame.
    pub velocity: (f64, f64),
    /// Radius (half the side of a square).
    pub radius: f64,
    /// Of square and stripes, radians.
    pub angle: f64,
    /// RGB, 0 to 1.
    pub colour: [f64; 3],
    /// Stripes across its diameter.
    pub stripes: f64,
    /// How much darker the dark stripes are, 0 to 1.
    pub contrast: f64,
}

impl Shape {
    /// The centre at a frame, after bouncing off the border.
    pub fn centre(&self, frame: usize) -> (f64, f64) {
        let at = |start: f64, speed: f64| bounce(start + speed * frame as f64, self.radius);
        (at(self.position.0, self.velocity.0), at(self.position.1, self.velocity.1))
    }

    /// Distance to the edge at an offset from the centre: negative inside.
    fn distance(&self, dx: f64, dy: f64) -> f64 {
        match self.kind {
            Kind::Disc => dx.hypot(dy) - self.radius,
            Kind::Ring => (dx.hypot(dy) - 0.75 * self.radius).abs() - 0.25 * self.radius,
            Kind::Square => {
                let (sin, cos) = self.angle.sin_cos();
                let (u, v) = (cos * dx + sin * dy, cos * dy - sin * dx);
                // Three quarters, so that a turned square stays within its radius and its bounce.
                u.abs().max(v.abs()) - 0.72 * self.radius
            }
        }
    }
}

/// Folds a coordinate into `margin ..= 1 - margin`, as a ball bounces.
fn bounce(value: f64, margin: f64) -> f64 {
    let span = 1.0 - 2.0 * margin;
    let folded = (value - margin).rem_euclid(2.0 * span);
    margin + if folded > span { 2.0 * span - folded } else { folded }
}

/// A whole scene: what a clip shows.
#[derive(Clone, Debug)]
pub struct Scene {
    /// From the farthest to the nearest.
    pub shapes: Vec<Shape>,
    background: [[f64; 3]; 2],
    shading: (f64, f64),
}

impl Scene {
    /// The scene of one clip: the same for the same seed and index.
    pub fn new(seed: u64, index: u64) -> Self {
        let mut rng = ChaCha8Rng::seed_from_u64(seed);
        rng.set_stream(index);
        let mut colour = |low: f64, high: f64| [0; 3].map(|_| rng.random_range(low..high));
        let background = [colour(0.05, 0.55), colour(0.05, 0.55)];
        let turn = rng.random_range(0.0..std::f64::consts::TAU);
        let count = rng.random_range(2..=4);
        let shapes = (0..count)
            .map(|_| {
                let radius = rng.random_range(0.1..0.24);
                let place = |rng: &mut ChaCha8Rng| rng.random_range(radius..1.0 - radius);
                let position = (place(&mut rng), place(&mut rng));
                let direction = rng.random_range(0.0..std::f64::consts::TAU);
                let speed = rng.random_range(0.005..0.045);
                // One channel is always bright: shapes stand out from the background.
                let mut colour = [0; 3].map(|_| rng.random_range(0.1..1.0));
                colour[rng.random_range(0..3)] = rng.random_range(0.75..1.0);
                Shape {
                    kind: [Kind::Disc, Kind::Square, Kind::Ring][rng.random_range(0..3)],
                    position,
                    velocity: (speed * direction.cos(), speed * direction.sin()),
                    radius,
                    angle: rng.random_range(0.0..std::f64::consts::PI),
                    colour,
                    stripes: rng.random_range(1.0..3.0),
                    contrast: rng.random_range(0.0..0.6),
                }
            })
            .collect();
        Self { shapes, background, shading: (turn.cos(), turn.sin()) }
    }

    /// The same scene with that many frames where it had one.
    pub fn slowed(mut self, factor: f64) -> Self {
        for shape in &mut self.shapes {
            shape.velocity = (shape.velocity.0 / factor, shape.velocity.1 / factor);
        }
        self
    }

    /// One frame as bytes in the order row, column, RGB.
    pub fn render(&self, frame: usize, height: usize, width: usize) -> Vec<u8> {
        let side = height.min(width) as f64;
        let (aspect_x, aspect_y) = (width as f64 / side, height as f64 / side);
        let centres: Vec<(f64, f64)> = self
            .shapes
            .iter()
            .map(|shape| {
                let (x, y) = shape.centre(frame);
                (x * aspect_x, y * aspect_y)
            })
            .collect();
        let mut pixels = Vec::with_capacity(height * width * 3);
        for row in 0..height {
            for column in 0..width {
                let (x, y) = ((column as f64 + 0.5) / side, (row as f64 + 0.5) / side);
                let share = 0.5 + 0.5 * ((x - 0.5) * self.shading.0 + (y - 0.5) * self.shading.1);
                let mut colour: [f64; 3] = std::array::from_fn(|c| {
                    self.background[0][c] * (1.0 - share) + self.background[1][c] * share
                });
                for (shape, centre) in self.shapes.iter().zip(&centres) {
                    let (dx, dy) = (x - centre.0, y - centre.1);
                    // Coverage falls from 1 to 0 over one pixel across the edge.
                    let cover = (0.5 - shape.distance(dx, dy) * side).clamp(0.0, 1.0);
                    if cover > 0.0 {
                        let along = (shape.angle.cos() * dx + shape.angle.sin() * dy) / (2.0 * shape.radius);
                        let stripe = 0.5 + 0.5 * (std::f64::consts::TAU * shape.stripes * along).sin();
                        let light = 1.0 - shape.contrast * stripe;
                        for (value, target) in colour.iter_mut().zip(shape.colour) {
                            *value = *value * (1.0 - cover) + target * light * cover;
                        }
                    }
                }
                pixels.extend(colour.map(|value: f64| (value.clamp(0.0, 1.0) * 255.0 + 0.5) as u8));
            }
        }
        pixels
    }
}
