//! Power laws: how a loss falls with the size of a model, or with what its training costs.

use anyhow::{Result, ensure};

/// L = (a · X)^b, fitted as a straight line through the logarithms, ln L = b · ln X + b · ln a (arXiv 2404.02905, section 4.2).
#[derive(Clone, Copy, Debug, PartialEq, serde::Serialize)]
pub struct PowerLaw {
    /// The factor on X; 0 or infinite where the loss hardly depends on X.
    pub a: f64,
    /// The exponent, below 0 where more helps.
    pub b: f64,
    /// The standard error of the exponent; NaN of two points.
    pub b_error: f64,
    /// b · ln a, the logarithm of L at X = 1.
    pub level: f64,
    /// The share of the variance of ln L that the line explains.
    pub r_squared: f64,
}

impl PowerLaw {
    /// The least-squares line through points (X, L), all above 0.
    ///
    /// # Errors
    /// Fewer than two different X, a number that is not above 0.
    pub fn fit(points: &[(f64, f64)]) -> Result<Self> {
        let positive = |&(x, loss): &(f64, f64)| x > 0.0 && loss > 0.0 && x.is_finite() && loss.is_finite();
        ensure!(points.iter().all(positive), "a power law goes through numbers above 0, not {points:?}");
        let n = points.len() as f64;
        let logs: Vec<(f64, f64)> = points.iter().map(|(x, loss)| (x.ln(), loss.ln())).collect();
        let mean = |of: fn(&(f64, f64)) -> f64| logs.iter().map(of).sum::<f64>() / n;
        let (x_mean, y_mean) = (mean(|p| p.0), mean(|p| p.1));
        let sum = |of: &dyn Fn(f64, f64) -> f64| logs.iter().map(|&(x, y)| of(x, y)).sum::<f64>();
        let xx = sum(&|x, _| (x - x_mean).powi(2));
        ensure!(xx > 0.0, "a power law needs at least two different sizes: {points:?}");
        let b = sum(&|x, y| (x - x_mean) * (y - y_mean)) / xx;
        let level = y_mean - b * x_mean;
        let unexplained = sum(&|x, y| (y - level - b * x).powi(2));
        Ok(Self {
            a: (level / b).exp(),
            b,
            level,
            b_error: (unexplained / (n - 2.0) / xx).sqrt(),
            r_squared: 1.0 - unexplained / sum(&|_, y| (y - y_mean).powi(2)),
        })
    }

    /// L at an X.
    pub fn at(&self, x: f64) -> f64 {
        (self.level + self.b * x.ln()).exp()
    }

    /// The law and how sure it is, in words.
    pub fn describe(&self, x: &str) -> String {
        format!(
            "L = ({:.3e} · {x})^b, b = {:.4} ± {:.4} (standard error), R² = {:.4}",
            self.a, self.b, self.b_error, self.r_squared
        )
    }
}

/// The points (X, L) that no other one undercuts in L at the same X or less, X rising: what is reached at best.
pub fn frontier(points: &[(f64, f64)]) -> Vec<(f64, f64)> {
    let mut sorted = points.to_vec();
    sorted.sort_by(|a, b| a.0.total_cmp(&b.0).then(a.1.total_cmp(&b.1)));
    let mut least = f64::INFINITY;
    sorted.retain(|&(_, loss)| {
        let better = loss < least;
        least = least.min(loss);
        better
    });
    sorted
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_exact_law_is_found_again() {
        let law = |x: f64| (2.5e-3 * x).powf(-0.2);
        let points: Vec<(f64, f64)> = [1e4, 3e4, 2e5, 1e7].iter().map(|&x| (x, law(x))).collect();
        let fit = PowerLaw::fit(&points).unwrap();
        assert!((fit.a / 2.5e-3 - 1.0).abs() < 1e-9 && (fit.b + 0.2).abs() < 1e-12, "{fit:?}");
        assert!(fit.b_error < 1e-9 && fit.r_squared > 1.0 - 1e-12, "{fit:?}");
        assert!((fit.at(5e5) / law(5e5) - 1.0).abs() < 1e-9);
    }

    #[test]
    fn the_error_is_that_of_least_squares() {
        // ln L = -0.5 ln X with residuals 0.1, -0.2, 0.1 at ln X = 0, 1, 2, which change no coefficient.
        let points = [(0.0, 0.1), (1.0, -0.7), (2.0, -0.9)].map(|(x, y): (f64, f64)| (x.exp(), y.exp()));
        let fit = PowerLaw::fit(&points).unwrap();
        assert!((fit.b + 0.5).abs() < 1e-12 && (fit.a - 1.0).abs() < 1e-12, "{fit:?}");
        assert!((fit.b_error - (0.06f64 / 1.0 / 2.0).sqrt()).abs() < 1e-12, "{fit:?}");
        assert!((fit.r_squared - (1.0 - 0.06 / 0.56)).abs() < 1e-12, "{fit:?}");
    }

    #[test]
    fn a_loss_that_hardly_falls_has_a_law_too() {
        let fit = PowerLaw::fit(&[(1e3, 5.0), (1e6, 4.99999), (1e9, 5.0)]).unwrap();
        assert!((fit.at(1e6) - 5.0).abs() < 1e-4, "{fit:?}");
    }

    #[test]
    fn what_has_no_law_is_refused() {
        for points in [&[(1.0, 2.0)][..], &[(1.0, 2.0), (1.0, 3.0)], &[(1.0, 2.0), (2.0, 0.0)], &[]] {
            assert!(PowerLaw::fit(points).is_err(), "{points:?}");
        }
    }

    #[test]
    fn the_frontier_holds_what_nothing_undercuts() {
        let points = [(4.0, 2.0), (1.0, 5.0), (2.0, 6.0), (3.0, 3.0), (3.0, 4.0), (5.0, 2.0)];
        assert_eq!(frontier(&points), [(1.0, 5.0), (3.0, 3.0), (4.0, 2.0)]);
    }
}
