//! A first-person maze with actions: the same place is seen again, from other sides and much later.
//!
//! A maze is a square of blocks, each solid or free; every free block can be reached, along more than one way. A walker
//! goes from place to place and back to where it began, so that a model that has forgotten a wall's colours shows it.
//! Pictures are made by casting a ray for every column (and the floor under it), four samples a pixel.

use std::collections::VecDeque;
use std::f64::consts::TAU;

use rand::seq::SliceRandom;
use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;

/// What the walker does between one frame and the next. Its number is what data sets hand out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(i64)]
pub enum Action {
    /// Nothing.
    Stay = 0,
    /// A quarter of a block ahead.
    Forward = 1,
    /// A sixteenth of a full turn to the left.
    Left = 2,
    /// A sixteenth of a full turn to the right.
    Right = 3,
}

impl Action {
    /// How many actions there are.
    pub const COUNT: i64 = 4;

    /// The action of a number.
    pub fn from_number(number: i64) -> Option<Self> {
        [Self::Stay, Self::Forward, Self::Left, Self::Right]
            .into_iter()
            .find(|&action| action as i64 == number)
    }
}

/// Headings in a full turn; a right angle is four of them.
const HEADINGS: u8 = 16;

/// Blocks per step.
const STEP: f64 = 0.25;

/// The nearest that one comes to a wall, in blocks.
const MARGIN: f64 = 0.2;

/// Half the width of what is seen one block ahead, in blocks: a view of 67 degrees.
const HALF_VIEW: f64 = 0.66;

/// Where one stands and looks.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Pose {
    /// Blocks from the maze's left border.
    pub x: f64,
    /// Blocks from the maze's upper border.
    pub y: f64,
    /// Sixteenths of a full turn clockwise, as seen from above, from the direction of `x`: 0 to 15.
    pub heading: u8,
}

impl Pose {
    fn direction(self) -> (f64, f64) {
        let (sin, cos) = (f64::from(self.heading) / f64::from(HEADINGS) * TAU).sin_cos();
        (cos, sin)
    }
}

/// A block by column and row.
type Block = (usize, usize);

/// A maze: ground truth.
#[derive(Clone, Debug)]
pub struct Maze {
    side: usize,
    /// Row by row: the colour of a solid block; `None` for a free one.
    walls: Vec<Option<[f64; 3]>>,
    /// Of the floor, one tint a block.
    floor: Vec<[f64; 3]>,
    sky: [f64; 3],
}

impl Maze {
    /// Blocks along a side.
    pub const SIDE: usize = 9;

    /// A maze drawn from a generator of random numbers.
    fn new(rng: &mut ChaCha8Rng) -> Self {
        let side = Self::SIDE;
        let mut colour =
            |low: f64, high: f64| -> [f64; 3] { std::array::from_fn(|_| rng.random_range(low..high)) };
        let mut walls: Vec<_> = (0..side * side).map(|_| Some(colour(0.15, 1.0))).collect();
        let base = colour(0.2, 0.5);
        let floor =
            (0..side * side).map(|_| colour(-0.12, 0.12)).map(|t| std::array::from_fn(|c| base[c] + t[c]));
        let floor = floor.collect();
        let sky = colour(0.5, 0.9);
        // Rooms lie on odd rows and columns; a walk in depth opens the blocks between them.
        let mut open = |(x, y): Block| walls[y * side + x] = None;
        let mut seen = vec![false; side * side];
        let mut path = vec![(1, 1)];
        open((1, 1));
        seen[side + 1] = true;
        while let Some(&room) = path.last() {
            let mut doors = doors(room, side);
            doors.shuffle(rng);
            match doors.into_iter().find(|&(_, (x, y))| !seen[y * side + x]) {
                Some((door, next)) => {
                    open(door);
                    open(next);
                    seen[next.1 * side + next.0] = true;
                    path.push(next);
                }
                None => drop(path.pop()),
            }
        }
        // Some more doors, so that there are ways around.
        for _ in 0..side / 2 {
            let room = (2 * rng.random_range(0..side / 2) + 1, 2 * rng.random_range(0..side / 2) + 1);
            let doors = doors(room, side);
            open(doors[rng.random_range(0..doors.len())].0);
        }
        Self { side, walls, floor, sky }
    }

    /// Whether a block can be entered; nothing beyond the border can.
    pub fn is_free(&self, column: usize, row: usize) -> bool {
        column < self.side && row < self.side && self.walls[row * self.side + column].is_none()
    }

    /// Where an action leads. Walls stop what goes into them and let one glide along them.
    pub fn step(&self, pose: Pose, action: Action) -> Pose {
        let turned = |by: u8| Pose { heading: (pose.heading + by) % HEADINGS, ..pose };
        match action {
            Action::Stay => pose,
            Action::Left => turned(HEADINGS - 1),
            Action::Right => turned(1),
            Action::Forward => {
                let (dx, dy) = pose.direction();
                let fits = |x: f64, y: f64| {
                    let free = |x: f64, y: f64| x >= 0.0 && y >= 0.0 && self.is_free(x as usize, y as usize);
                    [-MARGIN, MARGIN].iter().all(|i| [-MARGIN, MARGIN].iter().all(|j| free(x + i, y + j)))
                };
                let x = Some(pose.x + STEP * dx).filter(|&x| fits(x, pose.y)).unwrap_or(pose.x);
                let y = Some(pose.y + STEP * dy).filter(|&y| fits(x, y)).unwrap_or(pose.y);
                Pose { x, y, ..pose }
            }
        }
    }

    /// What is seen from a pose, as bytes in the order row, column, RGB.
    pub fn render(&self, pose: Pose, height: usize, width: usize) -> Vec<u8> {
        let mut sums = vec![[0.0; 3]; height * width];
        for sample in 0..2 * width {
            let column = self.column(pose, sample, height, width);
            for (row, colour) in column.iter().enumerate() {
                for (sum, value) in sums[row / 2 * width + sample / 2].iter_mut().zip(colour) {
                    *sum += value;
                }
            }
        }
        sums.into_iter().flatten().map(|sum: f64| (sum.clamp(0.0, 4.0) * (255.0 / 4.0) + 0.5) as u8).collect()
    }

    /// The samples of one half column, from top to bottom.
    fn column(&self, pose: Pose, sample: usize, height: usize, width: usize) -> Vec<[f64; 3]> {
        let (dx, dy) = pose.direction();
        let aside = HALF_VIEW * ((sample as f64 + 0.5) / width as f64 - 1.0);
        // One block ahead and so far to the right.
        let ray = (dx - aside * dy, dy + aside * dx);
        let hit = self.cast(pose, ray);
        // A wall one block high, seen from half its height, one block ahead, fills this share of the samples.
        let scale = width as f64 / (2.0 * HALF_VIEW);
        let lit = 1.0 / (1.0 + 0.12 * hit.distance * hit.distance);
        let shade = lit * if hit.across { 0.8 } else { 1.0 };
        (0..2 * height)
            .map(|row| {
                // Above 0, below 0, in blocks one block ahead.
                let rise = (height as f64 - row as f64 - 0.5) / (2.0 * scale);
                let at = rise * hit.distance;
                if at.abs() < 0.5 {
                    let dark = if brick(hit.along, at + 0.5) { 1.0 } else { 0.55 };
                    return hit.colour.map(|value| value * shade * dark);
                }
                if rise > 0.0 {
                    return self.sky.map(|value| value * (0.6 + 0.4 * (rise * HALF_VIEW).min(1.0)));
                }
                let far = 0.5 / -rise;
                let (x, y) = (pose.x + far * ray.0, pose.y + far * ray.1);
                let block = (y.max(0.0) as usize).min(self.side - 1) * self.side
                    + (x.max(0.0) as usize).min(self.side - 1);
                self.floor[block].map(|value| value / (1.0 + 0.12 * far * far))
            })
            .collect()
    }

    /// The first wall along a ray, walked block by block (Amanatides and Woo, 1987).
    fn cast(&self, pose: Pose, ray: (f64, f64)) -> Hit {
        let mut block = (pose.x.floor() as i64, pose.y.floor() as i64);
        // Distance from one border of a block to the next along the ray, to the first one, and which way.
        let axis = |start: f64, speed: f64| {
            let length = if speed == 0.0 { f64::INFINITY } else { speed.abs().recip() };
            let ahead = if speed < 0.0 { start - start.floor() } else { start.floor() + 1.0 - start };
            let first = if length.is_finite() { ahead * length } else { length };
            (length, first, if speed < 0.0 { -1 } else { 1 })
        };
        let (length_x, mut next_x, step_x) = axis(pose.x, ray.0);
        let (length_y, mut next_y, step_y) = axis(pose.y, ray.1);
        loop {
            let across = next_y < next_x;
            let distance = if across { next_y } else { next_x };
            if across {
                block.1 += step_y;
                next_y += length_y;
            } else {
                block.0 += step_x;
                next_x += length_x;
            }
            let inside = |value: i64| usize::try_from(value).ok().filter(|&value| value < self.side);
            let colour = match (inside(block.0), inside(block.1)) {
                (Some(x), Some(y)) => self.walls[y * self.side + x],
                // Only from a pose that lies outside the maze.
                _ => Some(self.sky),
            };
            if let Some(colour) = colour {
                let at = if across { pose.x + distance * ray.0 } else { pose.y + distance * ray.1 };
                return Hit { distance, across, along: at.rem_euclid(1.0), colour };
            }
        }
    }
}

/// A wall that a ray meets.
struct Hit {
    /// In blocks, measured along the direction of sight.
    distance: f64,
    /// Whether the wall faces up or down the map, not left or right.
    across: bool,
    /// Where on the wall, 0 to 1.
    along: f64,
    colour: [f64; 3],
}

/// Whether a point of a wall is on a brick, not on the mortar.
fn brick(along: f64, height: f64) -> bool {
    let row = height * 4.0;
    let column = along * 2.0 + 0.5 * (row.floor() % 2.0);
    row.fract() > 0.12 && column.fract() > 0.06
}

/// From a room, the blocks that could be doors and the rooms behind them.
fn doors((x, y): Block, side: usize) -> Vec<(Block, Block)> {
    let mut doors = Vec::new();
    if x + 2 < side {
        doors.push(((x + 1, y), (x + 2, y)));
    }
    if y + 2 < side {
        doors.push(((x, y + 1), (x, y + 2)));
    }
    if x > 2 {
        doors.push(((x - 1, y), (x - 2, y)));
    }
    if y > 2 {
        doors.push(((x, y - 1), (x, y - 2)));
    }
    doors
}

/// A walk through a maze: ground truth of a clip.
#[derive(Clone, Debug)]
pub struct Walk {
    /// Where it goes.
    pub maze: Maze,
    /// One a frame.
    pub poses: Vec<Pose>,
    /// One between each frame and the next.
    pub actions: Vec<Action>,
}

impl Walk {
    /// The walk of one clip: the same for the same seed and index; a longer one begins as a shorter one does.
    pub fn new(seed: u64, index: u64, frames: usize) -> Self {
        let mut rng = ChaCha8Rng::seed_from_u64(seed);
        rng.set_stream(index);
        let maze = Maze::new(&mut rng);
        let free: Vec<Block> = (0..maze.side)
            .flat_map(|y| (0..maze.side).map(move |x| (x, y)))
            .filter(|&(x, y)| maze.is_free(x, y))
            .collect();
        let home = free[rng.random_range(0..free.len())];
        let heading = 4 * rng.random_range(0..4u8);
        let mut pose = Pose { x: home.0 as f64 + 0.5, y: home.1 as f64 + 0.5, heading };
        let (mut poses, mut actions) = (vec![pose], Vec::new());
        let mut way = VecDeque::new();
        let mut at = home;
        let mut outward = false;
        while poses.len() < frames {
            if way.is_empty() {
                // Away from home and back again, in turns.
                outward = !outward || at == home;
                let goal = if outward { free[rng.random_range(0..free.len())] } else { home };
                way = path(&maze, at, goal);
            }
            let Some(next) = way.pop_front() else {
                // One is there already: a look around, all the way, as walkers do.
                let turn = if rng.random_bool(0.5) { Action::Left } else { Action::Right };
                for action in std::iter::once(Action::Stay).chain(std::iter::repeat_n(turn, HEADINGS.into()))
                {
                    pose = maze.step(pose, action);
                    actions.push(action);
                    poses.push(pose);
                }
                continue;
            };
            let wanted = heading_to(at, next);
            while pose.heading != wanted {
                let right = (wanted + HEADINGS - pose.heading) % HEADINGS;
                let action = if right <= HEADINGS / 2 { Action::Right } else { Action::Left };
                pose = maze.step(pose, action);
                actions.push(action);
                poses.push(pose);
            }
            for _ in 0..(1.0 / STEP) as usize {
                pose = maze.step(pose, Action::Forward);
                actions.push(Action::Forward);
                poses.push(pose);
            }
            // Rounding must not add up over a long walk.
            (pose.x, pose.y) = (next.0 as f64 + 0.5, next.1 as f64 + 0.5);
            at = next;
        }
        poses.truncate(frames);
        actions.truncate(frames.saturating_sub(1));
        Self { maze, poses, actions }
    }
}

/// The heading from a block to its neighbour.
fn heading_to(from: Block, to: Block) -> u8 {
    match (to.0.cmp(&from.0), to.1.cmp(&from.1)) {
        (std::cmp::Ordering::Greater, _) => 0,
        (std::cmp::Ordering::Less, _) => HEADINGS / 2,
        (_, std::cmp::Ordering::Greater) => HEADINGS / 4,
        _ => 3 * HEADINGS / 4,
    }
}

/// The blocks of a shortest way, without the first one; empty if there is nowhere to go.
fn path(maze: &Maze, from: Block, to: Block) -> VecDeque<Block> {
    let mut towards = vec![None; maze.side * maze.side];
    let mut queue = VecDeque::from([to]);
    towards[to.1 * maze.side + to.0] = Some(to);
    // From the goal outwards, so that the way is read off from the start.
    while let Some((x, y)) = queue.pop_front() {
        for (i, j) in [(x + 1, y), (x, y + 1), (x.wrapping_sub(1), y), (x, y.wrapping_sub(1))] {
            if maze.is_free(i, j) && towards[j * maze.side + i].is_none() {
                towards[j * maze.side + i] = Some((x, y));
                queue.push_back((i, j));
            }
        }
    }
    let mut way = VecDeque::new();
    let mut at = from;
    while at != to {
        let Some(next) = towards[at.1 * maze.side + at.0] else { break };
        way.push_back(next);
        at = next;
    }
    way
}
