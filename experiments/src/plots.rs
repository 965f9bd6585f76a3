//! Line plots as SVG text.

use anyhow::{Result, anyhow};
use plotters::prelude::*;

/// One line of a plot.
pub struct Series {
    /// Its name in the legend.
    pub name: String,
    /// (x, y), x rising.
    pub points: Vec<(f64, f64)>,
}

const PALETTE: [RGBColor; 6] = [
    RGBColor(37, 99, 235),
    RGBColor(220, 80, 40),
    RGBColor(22, 140, 90),
    RGBColor(140, 70, 190),
    RGBColor(190, 140, 10),
    RGBColor(80, 90, 110),
];

/// Lines over training steps; the y range is that of the data between the 0th and 98th percentile, so that a spike at the
/// start does not flatten the rest. `None` where there is nothing to draw.
///
/// # Errors
/// The drawing library's.
pub fn lines(title: &str, [x_label, y_label]: [&str; 2], series: &[Series]) -> Result<Option<String>> {
    let mut values: Vec<f64> =
        series.iter().flat_map(|s| &s.points).map(|p| p.1).filter(|v| v.is_finite()).collect();
    if values.len() < 2 {
        return Ok(None);
    }
    values.sort_by(f64::total_cmp);
    let (low, high) = (values[0], values[((values.len() - 1) * 98).div_ceil(100)]);
    let margin = ((high - low) * 0.06).max(high.abs().max(1e-6) * 0.01);
    // The legend's place.
    let headroom = if series.len() > 1 { (high - low) * 0.25 } else { 0.0 };
    let top = high + margin.max(headroom);
    let xs = || series.iter().flat_map(|s| &s.points).map(|p| p.0);
    let (first, last) = (xs().fold(f64::INFINITY, f64::min), xs().fold(1.0, f64::max));
    let mut svg = String::new();
    {
        let root = SVGBackend::with_string(&mut svg, (620, 300)).into_drawing_area();
        let draw = |e: &dyn std::fmt::Display| anyhow!("cannot draw the plot {title}: {e}");
        let mut chart = ChartBuilder::on(&root)
            .caption(title, ("sans-serif", 15))
            .margin(8)
            .x_label_area_size(32)
            .y_label_area_size(58)
            .build_cartesian_2d(first.min(last - 1.0)..last, (low - margin)..top)
            .map_err(|e| draw(&e))?;
        chart
            .configure_mesh()
            .light_line_style(TRANSPARENT)
            .bold_line_style(RGBColor(226, 229, 234))
            .axis_style(RGBColor(150, 156, 166))
            .x_desc(x_label)
            .y_desc(y_label)
            // Steps and frames are whole numbers.
            .x_labels(7.min((last - first) as usize + 1).max(2))
            .y_labels(6)
            .y_label_formatter(&|v| short(*v, top - low + margin))
            .x_label_formatter(&|v| format!("{v:.0}"))
            .label_style(("sans-serif", 11))
            .draw()
            .map_err(|e| draw(&e))?;
        for (index, line) in series.iter().enumerate() {
            let colour = PALETTE[index % PALETTE.len()];
            let points =
                line.points.iter().copied().filter(|p| p.1.is_finite()).map(|(x, y)| (x, y.min(top)));
            chart
                .draw_series(LineSeries::new(points, colour.stroke_width(2)))
                .map_err(|e| draw(&e))?
                .label(&line.name)
                .legend(move |(x, y)| PathElement::new([(x, y), (x + 16, y)], colour.stroke_width(3)));
        }
        if series.len() > 1 {
            chart
                .configure_series_labels()
                .position(SeriesLabelPosition::UpperRight)
                .background_style(WHITE.mix(0.85))
                .border_style(RGBColor(220, 224, 230))
                .label_font(("sans-serif", 11))
                .draw()
                .map_err(|e| draw(&e))?;
        }
        root.present().map_err(|e| draw(&e))?;
    }
    Ok(Some(svg))
}

/// Points beside a law of them, both axes logarithmic. Points of one series are joined.
///
/// # Errors
/// No point, one that is not above 0; the drawing library's.
pub fn power_law(
    title: &str,
    [x_label, y_label]: [&str; 2],
    measured: &[Series],
    law: impl Fn(f64) -> f64,
) -> Result<String> {
    let points = || measured.iter().flat_map(|series| series.points.iter().copied());
    let range = |of: fn((f64, f64)) -> f64| {
        let (low, high) = points().map(of).fold((f64::INFINITY, 0.0f64), |(l, h), v| (l.min(v), h.max(v)));
        (low, high)
    };
    let ((first, last), (low, high)) = (range(|p| p.0), range(|p| p.1));
    if !(first > 0.0 && low > 0.0 && last.is_finite() && high.is_finite()) {
        return Err(anyhow!("cannot draw the plot {title}: it has no points, or some that are not above 0"));
    }
    // Logarithms on linear axes: an axis of less than a decade needs labels too.
    let logs = |(x, y): (f64, f64)| (x.log10(), y.log10());
    let wide = |low: f64, high: f64| {
        let margin = 0.05 * (high - low).max(0.1);
        low - margin..high + margin
    };
    let (first, last) = (first.log10(), last.log10());
    let at = |x: f64| law(10f64.powf(x)).log10();
    let xs = wide(first, last);
    if !(at(xs.start).is_finite() && at(xs.end).is_finite()) {
        return Err(anyhow!("cannot draw the plot {title}: its law leaves the numbers"));
    }
    let ys = wide(low.log10().min(at(xs.end)), high.log10().max(at(xs.start)));
    let mut svg = String::new();
    {
        let root = SVGBackend::with_string(&mut svg, (620, 380)).into_drawing_area();
        let draw = |e: &dyn std::fmt::Display| anyhow!("cannot draw the plot {title}: {e}");
        let mut chart = ChartBuilder::on(&root)
            .caption(title, ("sans-serif", 15))
            .margin(8)
            .x_label_area_size(36)
            .y_label_area_size(58)
            .build_cartesian_2d(xs.clone(), ys)
            .map_err(|e| draw(&e))?;
        chart
            .configure_mesh()
            .light_line_style(TRANSPARENT)
            .bold_line_style(RGBColor(226, 229, 234))
            .axis_style(RGBColor(150, 156, 166))
            .x_desc(x_label)
            .y_desc(y_label)
            .x_labels(6)
            .y_labels(6)
            .x_label_formatter(&|v| format!("{:.1e}", 10f64.powf(*v)))
            .y_label_formatter(&|v| format!("{:.2}", 10f64.powf(*v)))
            .label_style(("sans-serif", 11))
            .draw()
            .map_err(|e| draw(&e))?;
        let ink = RGBColor(30, 36, 48);
        // A straight line; dashes need more points than its ends.
        let line = (0..=100).map(|i| xs.start + (xs.end - xs.start) * f64::from(i) / 100.0);
        chart
            .draw_series(DashedLineSeries::new(line.map(|x| (x, at(x))), 6, 4, ink.stroke_width(1)))
            .map_err(|e| draw(&e))?
            .label("fitted power law")
            .legend(move |(x, y)| PathElement::new([(x, y), (x + 16, y)], ink.stroke_width(1)));
        for (index, series) in measured.iter().enumerate() {
            let colour = PALETTE[index % PALETTE.len()];
            let points = || series.points.iter().copied().map(logs);
            chart.draw_series(LineSeries::new(points(), colour.stroke_width(1))).map_err(|e| draw(&e))?;
            chart
                .draw_series(points().map(|point| Circle::new(point, 3, colour.filled())))
                .map_err(|e| draw(&e))?
                .label(&series.name)
                .legend(move |(x, y)| Circle::new((x + 8, y), 3, colour.filled()));
        }
        chart
            .configure_series_labels()
            .position(SeriesLabelPosition::UpperRight)
            .background_style(WHITE.mix(0.85))
            .border_style(RGBColor(220, 224, 230))
            .label_font(("sans-serif", 11))
            .draw()
            .map_err(|e| draw(&e))?;
        root.present().map_err(|e| draw(&e))?;
    }
    Ok(svg)
}

/// A number as a label of an axis that spans `range`: as many decimals as tell its ticks apart.
fn short(value: f64, range: f64) -> String {
    let decimals = (1.5 - range.log10()).ceil().clamp(0.0, 12.0) as usize;
    if decimals > 5 { format!("{value:.1e}") } else { format!("{value:.decimals$}") }
}
