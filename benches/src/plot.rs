//! Line plots with error bars, as SVG.

use plotters::prelude::*;

use crate::peer::Outcome;
use crate::spread::Spread;

const SIZE: (u32, u32) = (900, 480);
/// Told apart also by those who see few colours (Okabe and Ito).
const COLOURS: [RGBColor; 7] = [
    RGBColor(0x00, 0x72, 0xb2),
    RGBColor(0x56, 0xb4, 0xe9),
    RGBColor(0xd5, 0x5e, 0x00),
    RGBColor(0xe6, 0x9f, 0x00),
    RGBColor(0x00, 0x9e, 0x73),
    RGBColor(0xcc, 0x79, 0xa7),
    RGBColor(0x00, 0x00, 0x00),
];

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

impl Plot {
    /// The plot as an SVG document.
    pub fn to_svg(&self) -> Outcome<String> {
        let mut svg = String::new();
        self.draw(&mut svg).map_err(|error| error.to_string())?;
        Ok(svg)
    }

    fn draw(&self, svg: &mut String) -> Result<(), Box<dyn std::error::Error>> {
        let labels: Vec<&str> = self
            .lines
            .first()
            .map_or_else(Vec::new, |line| line.points.iter().map(|(x, _)| x.as_str()).collect());
        let most = self.lines.iter().flat_map(|line| &line.points).map(|(_, s)| s.max).fold(0.0, f64::max);
        let area = SVGBackend::with_string(svg, SIZE).into_drawing_area();
        area.fill(&WHITE)?;
        let places = i32::try_from(labels.len().max(1))?;
        let mut chart = ChartBuilder::on(&area)
            .caption(&self.title, ("sans-serif", 18))
            .margin(12)
            .x_label_area_size(44)
            .y_label_area_size(60)
            .build_cartesian_2d((0..places - 1).into_segmented(), 0.0..most.max(1e-9) * 1.05)?;
        let label = |place: &SegmentValue<i32>| match place {
            SegmentValue::Exact(at) | SegmentValue::CenterOf(at) => usize::try_from(*at)
                .ok()
                .and_then(|at| labels.get(at))
                .map_or_else(String::new, |x| (*x).to_owned()),
            SegmentValue::Last => String::new(),
        };
        chart
            .configure_mesh()
            .disable_x_mesh()
            .x_desc(&self.x)
            .y_desc(&self.y)
            .x_label_formatter(&label)
            .draw()?;
        for (line, colour) in self.lines.iter().zip(COLOURS.into_iter().cycle()) {
            let points: Vec<(SegmentValue<i32>, Spread)> = line
                .points
                .iter()
                .filter_map(|(x, spread)| {
                    let at = labels.iter().position(|label| label == x)?;
                    Some((SegmentValue::CenterOf(i32::try_from(at).ok()?), *spread))
                })
                .collect();
            let medians = points.iter().map(|(x, spread)| (x.clone(), spread.median));
            chart
                .draw_series(LineSeries::new(medians, colour.stroke_width(2)))?
                .label(&line.name)
                .legend(move |(x, y)| PathElement::new([(x, y), (x + 18, y)], colour.stroke_width(2)));
            chart.draw_series(points.iter().map(|(x, spread)| {
                ErrorBar::new_vertical(x.clone(), spread.min, spread.median, spread.max, colour.filled(), 8)
            }))?;
        }
        chart
            .configure_series_labels()
            .position(SeriesLabelPosition::MiddleRight)
            .background_style(WHITE.mix(0.8))
            .border_style(BLACK.mix(0.3))
            .draw()?;
        area.present()?;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_plot_names_its_axes_and_lines() {
        let spread = |median: f64| Spread { min: median * 0.9, median, max: median * 1.1 };
        let points = vec![("1".to_owned(), spread(5.0)), ("16".to_owned(), spread(3.0))];
        let plot = Plot {
            title: "a < b".to_owned(),
            x: "partitions".to_owned(),
            y: "seconds".to_owned(),
            lines: vec![Line { name: "one worker".to_owned(), points }],
        };
        let svg = plot.to_svg().unwrap();
        for part in ["<svg", "a &lt; b", "partitions", "seconds", "one worker", "16", "</svg>"] {
            assert!(svg.contains(part), "{part:?} is not in {svg}");
        }
    }

    #[test]
    fn a_plot_of_nothing_is_a_plot() {
        let plot = Plot { title: String::new(), x: String::new(), y: String::new(), lines: Vec::new() };
        assert!(plot.to_svg().unwrap().contains("<svg"));
    }
}
