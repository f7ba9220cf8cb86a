//! Line plots with error bars, as SVG: little enough to write by hand, and the same bytes for the same data.

use std::fmt::Write as _;

use crate::spread::Spread;

const WIDTH: f64 = 760.0;
const HEIGHT: f64 = 420.0;
const LEFT: f64 = 70.0;
const RIGHT: f64 = 240.0;
const TOP: f64 = 40.0;
const BOTTOM: f64 = 50.0;
/// Told apart also by those who see few colours (Okabe and Ito).
const COLOURS: [&str; 7] = ["#0072b2", "#56b4e9", "#d55e00", "#e69f00", "#009e73", "#cc79a7", "#000000"];

/// One line: a name, and a spread for each place on the x axis.
#[derive(Clone, Debug)]
pub struct Line {
    /// For the legend.
    pub name: String,
    /// Label on the x axis, and values.
    pub points: Vec<(String, Spread)>,
}

/// A plot. The y axis begins at 0; the x axis has the labels of the first line, evenly spaced.
#[derive(Clone, Debug)]
pub struct Plot {
    /// Above the plot.
    pub title: String,
    /// Below the x axis.
    pub x: String,
    /// Beside the y axis.
    pub y: String,
    /// The lines.
    pub lines: Vec<Line>,
}

/// A round number at or above a tenth of `most`: the distance of the grid lines.
fn step(most: f64) -> f64 {
    let rough = most.max(1e-9) / 8.0;
    let power = 10_f64.powf(rough.log10().floor());
    [1.0, 2.0, 5.0, 10.0].into_iter().map(|n| n * power).find(|step| *step >= rough).unwrap_or(10.0 * power)
}

fn escaped(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;")
}

impl Plot {
    /// The plot as an SVG document.
    pub fn to_svg(&self) -> String {
        let labels: Vec<&str> = self
            .lines
            .first()
            .map_or_else(Vec::new, |line| line.points.iter().map(|(x, _)| x.as_str()).collect());
        let most = self.lines.iter().flat_map(|line| &line.points).map(|(_, s)| s.max).fold(0.0, f64::max);
        let step = step(most);
        let steps = (most / step).ceil().max(1.0);
        let (wide, high) = (WIDTH - LEFT - RIGHT, HEIGHT - TOP - BOTTOM);
        let x_of = |label: &str| {
            let at = labels.iter().position(|known| *known == label).unwrap_or(0);
            LEFT + wide * (at as f64 + 0.5) / labels.len().max(1) as f64
        };
        let y_of = |value: f64| TOP + high * (1.0 - value / (steps * step));
        let mut svg = String::new();
        let mut put = |text: String| {
            let _infallible = writeln!(svg, "{text}");
        };
        put(format!(
            "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {WIDTH} {HEIGHT}\" font-family=\"sans-serif\" font-size=\"12\">"
        ));
        put(format!("<rect width=\"{WIDTH}\" height=\"{HEIGHT}\" fill=\"white\"/>"));
        put(format!("<text x=\"{LEFT}\" y=\"22\" font-size=\"15\">{}</text>", escaped(&self.title)));
        for n in 0..=steps as u32 {
            let value = f64::from(n) * step;
            let (y, end) = (y_of(value), LEFT + wide);
            put(format!(
                "<line x1=\"{LEFT}\" y1=\"{y:.1}\" x2=\"{end:.1}\" y2=\"{y:.1}\" stroke=\"#dddddd\"/>"
            ));
            let digits = if step < 0.1 { 2 } else { usize::from(step < 1.0) };
            put(format!(
                "<text x=\"{:.1}\" y=\"{:.1}\" text-anchor=\"end\">{value:.digits$}</text>",
                LEFT - 6.0,
                y + 4.0
            ));
        }
        for label in &labels {
            let (x, y) = (x_of(label), TOP + high + 18.0);
            put(format!("<text x=\"{x:.1}\" y=\"{y:.1}\" text-anchor=\"middle\">{}</text>", escaped(label)));
        }
        let (x, y) = (LEFT + wide / 2.0, HEIGHT - 12.0);
        put(format!("<text x=\"{x:.1}\" y=\"{y:.1}\" text-anchor=\"middle\">{}</text>", escaped(&self.x)));
        let y = TOP + high / 2.0;
        put(format!(
            "<text x=\"18\" y=\"{y:.1}\" text-anchor=\"middle\" transform=\"rotate(-90 18 {y:.1})\">{}</text>",
            escaped(&self.y)
        ));
        for (n, (line, colour)) in self.lines.iter().zip(COLOURS.iter().cycle()).enumerate() {
            let path: Vec<String> =
                line.points.iter().map(|(x, s)| format!("{:.1},{:.1}", x_of(x), y_of(s.median))).collect();
            put(format!(
                "<polyline points=\"{}\" fill=\"none\" stroke=\"{colour}\" stroke-width=\"2\"/>",
                path.join(" ")
            ));
            for (label, spread) in &line.points {
                let (x, least, most) = (x_of(label), y_of(spread.min), y_of(spread.max));
                put(format!(
                    "<line x1=\"{x:.1}\" y1=\"{least:.1}\" x2=\"{x:.1}\" y2=\"{most:.1}\" stroke=\"{colour}\"/>"
                ));
                let y = y_of(spread.median);
                put(format!("<circle cx=\"{x:.1}\" cy=\"{y:.1}\" r=\"3\" fill=\"{colour}\"/>"));
            }
            let (x, y) = (LEFT + wide + 16.0, TOP + 12.0 + 20.0 * n as f64);
            put(format!(
                "<rect x=\"{x:.1}\" y=\"{:.1}\" width=\"12\" height=\"4\" fill=\"{colour}\"/>",
                y - 6.0
            ));
            put(format!("<text x=\"{:.1}\" y=\"{y:.1}\">{}</text>", x + 18.0, escaped(&line.name)));
        }
        put("</svg>".to_owned());
        svg
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_plot_has_every_line_every_label_and_a_grid_that_holds_the_largest_value() {
        let spread = |n| Spread { min: n - 0.5, median: n, max: n + 0.25 };
        let line = |name: &str, n| Line {
            name: name.into(),
            points: vec![("1".into(), spread(n)), ("16".into(), spread(2.0 * n))],
        };
        let plot = Plot {
            title: "a < b".into(),
            x: "places".into(),
            y: "seconds".into(),
            lines: vec![line("one", 1.0), line("two", 2.0)],
        };
        let svg = plot.to_svg();
        assert_eq!(svg.matches("<polyline").count(), 2);
        assert_eq!(svg.matches("<circle").count(), 4);
        for text in ["a &lt; b", ">places<", ">seconds<", ">one<", ">two<", ">1<", ">16<", ">5<"] {
            assert!(svg.contains(text), "{text}: {svg}");
        }
        assert_eq!(plot.to_svg(), svg);
    }

    #[test]
    fn grid_lines_are_at_round_numbers() {
        assert_eq!([0.9, 4.25, 7.0, 130.0].map(step), [0.2, 1.0, 1.0, 20.0]);
    }
}
