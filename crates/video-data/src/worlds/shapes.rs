//! Moving textured shapes: a synthetic world whose every clip is known exactly.
//!
//! Some discs, squares and rings, each with a colour, a stripe texture, a position, a velocity and a depth, bounce
//! off the border over a slowly shaded background; nearer ones occlude farther ones. Edges are antialiased, so that sizes
//! and speeds below a pixel are visible.

use std::ops::Range;

use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;
use serde::{Deserialize, Serialize};

use crate::{Error, Result};

/// How hard the world is to learn: what its scenes are drawn from, uniformly and with both ends. Reconstructing the
/// defaults is learnt in minutes on a CPU; generating them is not (docs/quickstart.md).
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct ShapesConfig {
    /// Shapes in a scene, at most 16.
    pub count: [usize; 2],
    /// Radii, in shares of the picture's shorter side; at most 0.45.
    pub radius: [f64; 2],
    /// How much darker the dark stripes of a shape are, 0 to 1.
    pub contrast: [f64; 2],
    /// Red, green and blue at the two ends of the background's shading, 0 to 1.
    pub background: [f64; 2],
    /// The shapes' colours.
    pub colours: Colours,
}

/// What colours shapes have.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Colours {
    /// Any that stand out from the background.
    Any,
    /// The seven of captions.
    Named,
}

impl Default for ShapesConfig {
    fn default() -> Self {
        Self {
            count: [2, 4],
            radius: [0.1, 0.24],
            contrast: [0.0, 0.6],
            background: [0.05, 0.55],
            colours: Colours::Any,
        }
    }
}

impl ShapesConfig {
    /// Refuses ranges that mean nothing.
    pub(crate) fn validate(&self) -> Result<()> {
        if !(1 <= self.count[0] && self.count[0] <= self.count[1] && self.count[1] <= 16) {
            let expected = "[least, most] of 1 to 16 shapes";
            return Err(Error::config("shapes.count", format!("{:?}", self.count), expected));
        }
        for (field, range, lowest, highest) in [
            ("shapes.radius", self.radius, 0.01, 0.45),
            ("shapes.contrast", self.contrast, 0.0, 1.0),
            ("shapes.background", self.background, 0.0, 1.0),
        ] {
            if !(lowest <= range[0] && range[0] <= range[1] && range[1] <= highest) {
                let expected = format!("[least, most] of {lowest} to {highest}");
                return Err(Error::config(field, format!("{range:?}"), &expected));
            }
        }
        Ok(())
    }
}

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

impl Kind {
    /// All kinds, in the order of their numbers as classes.
    pub const ALL: [Self; 3] = [Self::Disc, Self::Square, Self::Ring];

    /// The word of captions.
    pub fn name(self) -> &'static str {
        match self {
            Self::Disc => "disc",
            Self::Square => "square",
            Self::Ring => "ring",
        }
    }
}

/// The colours that captions tell apart, RGB.
const COLOURS: [(&str, [f64; 3]); 7] = [
    ("red", [0.95, 0.25, 0.25]),
    ("green", [0.3, 0.9, 0.3]),
    ("blue", [0.25, 0.35, 0.95]),
    ("yellow", [0.9, 0.9, 0.3]),
    ("cyan", [0.3, 0.9, 0.9]),
    ("magenta", [0.9, 0.3, 0.9]),
    ("white", [0.9, 0.9, 0.9]),
];

/// One shape: ground truth. Lengths are in shares of the picture's shorter side.
#[derive(Clone, Debug)]
pub struct Shape {
    /// What it is.
    pub kind: Kind,
    /// Centre at time 0, (x, y), 0 to 1.
    pub position: (f64, f64),
    /// Motion in a unit of time, which is an eighth of a second.
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
    /// The word for its colour: that of the nearest one which captions tell apart.
    pub fn colour_name(&self) -> &'static str {
        let distance = |colour: &[f64; 3]| -> f64 {
            colour.iter().zip(self.colour).map(|(a, b)| (a - b) * (a - b)).sum()
        };
        let nearest = COLOURS.iter().min_by(|(_, a), (_, b)| distance(a).total_cmp(&distance(b)));
        nearest.expect("there are colours").0
    }

    /// The centre at a time, after bouncing off the border.
    pub fn centre(&self, time: f64) -> (f64, f64) {
        let at = |start: f64, speed: f64| bounce(start + speed * time, self.radius);
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

    /// How much of a pixel, at an offset from the centre, is covered, with so many pixels in a length of 1: it falls from
    /// 1 to 0 over one pixel across the edge.
    fn cover(&self, dx: f64, dy: f64, side: f64) -> f64 {
        (0.5 - self.distance(dx, dy) * side).clamp(0.0, 1.0)
    }

    /// The rows or columns, of so many, outside which nothing is covered.
    fn reach(&self, centre: f64, side: f64, pixels: usize) -> Range<usize> {
        // The corners of a turned square are 0.72 √2 radii away from its centre, and half a pixel's cover adds √½.
        let most = 1.02 * self.radius * side + 0.71;
        let (first, end) = (centre * side - most - 0.5, centre * side + most + 0.5);
        first.max(0.0) as usize..(end.max(0.0) as usize).min(pixels)
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
    /// The scene of one clip: the same for the same world, seed and index.
    pub fn new(world: &ShapesConfig, seed: u64, index: u64) -> Self {
        let mut rng = ChaCha8Rng::seed_from_u64(seed);
        rng.set_stream(index);
        let [low, high] = world.background;
        let background = [[0; 3]; 2].map(|corner| corner.map(|_| rng.random_range(low..=high)));
        let turn = rng.random_range(0.0..std::f64::consts::TAU);
        let count = rng.random_range(world.count[0]..=world.count[1]);
        let shapes = (0..count)
            .map(|_| {
                let radius = rng.random_range(world.radius[0]..=world.radius[1]);
                let place = |rng: &mut ChaCha8Rng| rng.random_range(radius..1.0 - radius);
                let position = (place(&mut rng), place(&mut rng));
                let direction = rng.random_range(0.0..std::f64::consts::TAU);
                let speed = rng.random_range(0.005..0.045);
                let colour = match world.colours {
                    Colours::Named => COLOURS[rng.random_range(0..COLOURS.len())].1,
                    Colours::Any => {
                        // One channel is always bright: shapes stand out from the background.
                        let mut colour = [0; 3].map(|_| rng.random_range(0.1..1.0));
                        colour[rng.random_range(0..3)] = rng.random_range(0.75..1.0);
                        colour
                    }
                };
                Shape {
                    kind: Kind::ALL[rng.random_range(0..3)],
                    position,
                    velocity: (speed * direction.cos(), speed * direction.sin()),
                    radius,
                    angle: rng.random_range(0.0..std::f64::consts::PI),
                    colour,
                    stripes: rng.random_range(1.0..3.0),
                    contrast: rng.random_range(world.contrast[0]..=world.contrast[1]),
                }
            })
            .collect();
        Self { shapes, background, shading: (turn.cos(), turn.sin()) }
    }

    /// The kind of the nearest shape, which none occludes, by its place in [`Kind::ALL`].
    pub fn class(&self) -> i64 {
        self.shapes.last().map_or(0, |nearest| nearest.kind as i64)
    }

    /// The shapes from the nearest to the farthest: `a red disc, a blue ring and a white square`.
    pub fn caption(&self) -> String {
        let mut words: Vec<String> = self
            .shapes
            .iter()
            .rev()
            .map(|shape| format!("a {} {}", shape.colour_name(), shape.kind.name()))
            .collect();
        match words.pop() {
            Some(last) if !words.is_empty() => format!("{} and {last}", words.join(", ")),
            last => last.unwrap_or_default(),
        }
    }

    /// What is seen at a time, as bytes in the order row, column, RGB.
    pub fn render(&self, time: f64, height: usize, width: usize) -> Vec<u8> {
        let side = height.min(width) as f64;
        let (aspect_x, aspect_y) = (width as f64 / side, height as f64 / side);
        // The centre of a pixel.
        let at = |pixel: usize| (pixel as f64 + 0.5) / side;
        let mut colours: Vec<[f64; 3]> = Vec::with_capacity(height * width);
        for row in 0..height {
            for column in 0..width {
                let share =
                    0.5 + 0.5 * ((at(column) - 0.5) * self.shading.0 + (at(row) - 0.5) * self.shading.1);
                colours.push(std::array::from_fn(|c| {
                    self.background[0][c] * (1.0 - share) + self.background[1][c] * share
                }));
            }
        }
        for shape in &self.shapes {
            let (x, y) = shape.centre(time);
            let centre = (x * aspect_x, y * aspect_y);
            let (sin, cos) = shape.angle.sin_cos();
            for row in shape.reach(centre.1, side, height) {
                for column in shape.reach(centre.0, side, width) {
                    let (dx, dy) = (at(column) - centre.0, at(row) - centre.1);
                    let cover = shape.cover(dx, dy, side);
                    if cover > 0.0 {
                        let along = (cos * dx + sin * dy) / (2.0 * shape.radius);
                        let stripe = 0.5 + 0.5 * (std::f64::consts::TAU * shape.stripes * along).sin();
                        let light = 1.0 - shape.contrast * stripe;
                        for (value, target) in colours[row * width + column].iter_mut().zip(shape.colour) {
                            *value = *value * (1.0 - cover) + target * light * cover;
                        }
                    }
                }
            }
        }
        colours.into_iter().flatten().map(|value| (value.clamp(0.0, 1.0) * 255.0 + 0.5) as u8).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn class_and_caption_say_what_is_there() {
        for index in 0..20 {
            let scene = Scene::new(&ShapesConfig::default(), 3, index);
            let nearest = scene.shapes.last().unwrap();
            assert_eq!(Kind::ALL[scene.class() as usize], nearest.kind);
            let caption = scene.caption();
            let first = format!("a {} {}", nearest.colour_name(), nearest.kind.name());
            assert!(caption.starts_with(&first), "{caption}");
            assert_eq!(
                caption.split(' ').filter(|&word| word == "a").count(),
                scene.shapes.len(),
                "{caption}"
            );
        }
    }

    #[test]
    fn nothing_is_covered_beyond_the_reach() {
        for (index, side) in (0..40).zip([16usize, 33, 64, 300].into_iter().cycle()) {
            for shape in Scene::new(&ShapesConfig::default(), 7, index).shapes {
                let (centre, length) = (shape.centre(0.37 * index as f64), side as f64);
                let (rows, columns) =
                    (shape.reach(centre.1, length, side), shape.reach(centre.0, length, side));
                for (row, column) in (0..side).flat_map(|row| (0..side).map(move |column| (row, column))) {
                    let offset = |pixel: usize, centre: f64| (pixel as f64 + 0.5) / length - centre;
                    let cover = shape.cover(offset(column, centre.0), offset(row, centre.1), length);
                    assert!(cover == 0.0 || rows.contains(&row) && columns.contains(&column), "{shape:?}");
                }
            }
        }
    }
}
