//! Plots as SVG, by hand: lines over logarithmic axes, and bars.

use std::fmt::Write as _;
use std::{fs, path::Path};

use anyhow::{Context as _, Result};

const WIDTH: f64 = 720.0;
const HEIGHT: f64 = 420.0;
/// Left, right, top and bottom of what is drawn in.
const BOX: [f64; 4] = [70.0, 540.0, 40.0, 370.0];
/// Told apart by people who do not see all colours, too.
const COLOURS: [&str; 6] = [
    "#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9",
];

/// A plot of lines; both axes are logarithmic.
pub(crate) struct Lines<'a> {
    pub(crate) title: &'a str,
    pub(crate) x_label: &'a str,
    pub(crate) y_label: &'a str,
    pub(crate) series: Vec<Series<'a>>,
}

/// One line.
pub(crate) struct Series<'a> {
    pub(crate) name: &'a str,
    /// Points of positive coordinates; others are left out.
    pub(crate) points: Vec<(f64, f64)>,
}

impl Lines<'_> {
    /// Writes the plot to `path`; its folder is made.
    ///
    /// # Errors
    ///
    /// If it cannot be written.
    pub(crate) fn write(&self, path: &Path) -> Result<()> {
        write(path, &self.svg())
    }

    fn svg(&self) -> String {
        let positive = |(x, y): &&(f64, f64)| *x > 0.0 && *y > 0.0;
        let points = || {
            self.series
                .iter()
                .flat_map(|series| &series.points)
                .filter(positive)
        };
        let x = Axis::over(points().map(|point| point.0), BOX[0], BOX[1]);
        let y = Axis::over(points().map(|point| point.1), BOX[3], BOX[2]);
        let mut svg = begin(HEIGHT);
        text(&mut svg, (BOX[0], 22.0), "start", 15, self.title);
        text(
            &mut svg,
            ((BOX[0] + BOX[1]) / 2.0, HEIGHT - 12.0),
            "middle",
            12,
            self.x_label,
        );
        text(&mut svg, (8.0, BOX[2] - 6.0), "start", 12, self.y_label);
        for (at, label) in x.decades() {
            line(&mut svg, [(at, BOX[2]), (at, BOX[3])]);
            text(&mut svg, (at, BOX[3] + 16.0), "middle", 12, &label);
        }
        for (at, label) in y.decades() {
            line(&mut svg, [(BOX[0], at), (BOX[1], at)]);
            text(&mut svg, (BOX[0] - 6.0, at + 4.0), "end", 12, &label);
        }
        let colours = COLOURS.iter().cycle();
        for ((series, colour), row) in self.series.iter().zip(colours).zip(0u32..) {
            let placed: Vec<(f64, f64)> = series
                .points
                .iter()
                .filter(positive)
                .map(|(px, py)| (x.place(*px), y.place(*py)))
                .collect();
            let path: Vec<String> = placed
                .iter()
                .map(|(x, y)| format!("{x:.1},{y:.1}"))
                .collect();
            let path = path.join(" ");
            let _ = writeln!(
                svg,
                "<polyline points=\"{path}\" fill=\"none\" stroke=\"{colour}\" stroke-width=\"2\"/>"
            );
            for (x, y) in placed {
                let _ = writeln!(
                    svg,
                    "<circle cx=\"{x:.1}\" cy=\"{y:.1}\" r=\"3\" fill=\"{colour}\"/>"
                );
            }
            let at = BOX[2] + 12.0 + 20.0 * f64::from(row);
            let _ = writeln!(
                svg,
                "<rect x=\"{}\" y=\"{}\" width=\"12\" height=\"3\" fill=\"{colour}\"/>",
                BOX[1] + 14.0,
                at - 5.0
            );
            text(&mut svg, (BOX[1] + 32.0, at), "start", 12, series.name);
        }
        svg.push_str("</svg>\n");
        svg
    }
}

/// A plot of horizontal bars that begin at 0, in groups that share a scale.
pub(crate) struct Bars<'a> {
    pub(crate) title: &'a str,
    pub(crate) groups: Vec<Group<'a>>,
}

/// Bars under a heading.
pub(crate) struct Group<'a> {
    pub(crate) name: &'a str,
    /// What each bar stands for, its length, and what is written behind it.
    pub(crate) bars: Vec<(&'a str, f64, String)>,
}

/// Height of a bar with its space; left end and greatest length of bars.
const ROW: f64 = 22.0;
const BARS: [f64; 2] = [260.0, 330.0];

impl Bars<'_> {
    /// As [`Lines::write`].
    ///
    /// # Errors
    ///
    /// As there.
    pub(crate) fn write(&self, path: &Path) -> Result<()> {
        write(path, &self.svg())
    }

    fn svg(&self) -> String {
        let rows: usize = self.groups.iter().map(|group| group.bars.len() + 2).sum();
        let rows = u32::try_from(rows).unwrap_or(u32::MAX);
        let mut svg = begin(50.0 + ROW * f64::from(rows));
        text(&mut svg, (12.0, 24.0), "start", 15, self.title);
        let mut top = 40.0;
        for group in &self.groups {
            top += ROW;
            text(&mut svg, (12.0, top), "start", 13, group.name);
            let most = group.bars.iter().map(|bar| bar.1).fold(0.0, f64::max);
            let colours = COLOURS.iter().cycle();
            for ((name, value, label), colour) in group.bars.iter().zip(colours) {
                top += ROW;
                text(&mut svg, (BARS[0] - 8.0, top), "end", 12, name);
                let width = value / most * BARS[1];
                let _ = writeln!(
                    svg,
                    "<rect x=\"{}\" y=\"{:.1}\" width=\"{width:.1}\" height=\"14\" fill=\"{colour}\"/>",
                    BARS[0],
                    top - 11.0
                );
                text(&mut svg, (BARS[0] + width + 6.0, top), "start", 12, label);
            }
            top += ROW;
        }
        svg.push_str("</svg>\n");
        svg
    }
}

/// A logarithmic axis from a power of ten to another, and where its ends are drawn.
struct Axis {
    first: i32,
    last: i32,
    from: f64,
    to: f64,
}

impl Axis {
    fn over(values: impl Iterator<Item = f64>, from: f64, to: f64) -> Self {
        let (least, most) = values.fold((f64::MAX, f64::MIN), |(least, most), value| {
            (least.min(value), most.max(value))
        });
        let (first, last) = if least > most {
            (0, 1)
        } else {
            (least.log10().floor() as i32, most.log10().ceil() as i32)
        };
        let last = last.max(first + 1);
        Self {
            first,
            last,
            from,
            to,
        }
    }

    fn place(&self, value: f64) -> f64 {
        let share = (value.log10() - f64::from(self.first)) / f64::from(self.last - self.first);
        self.from + share * (self.to - self.from)
    }

    fn decades(&self) -> impl Iterator<Item = (f64, String)> + '_ {
        (self.first..=self.last).map(|power| {
            let value = 10f64.powi(power);
            (self.place(value), format!("{value}"))
        })
    }
}

fn write(path: &Path, svg: &str) -> Result<()> {
    if let Some(folder) = path.parent() {
        fs::create_dir_all(folder).with_context(|| format!("making {}", folder.display()))?;
    }
    fs::write(path, svg).with_context(|| format!("writing {}", path.display()))
}

fn begin(height: f64) -> String {
    format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {WIDTH} {height}\" \
         font-family=\"sans-serif\" font-size=\"12\">\n\
         <rect width=\"100%\" height=\"100%\" fill=\"white\"/>\n"
    )
}

fn text(svg: &mut String, (x, y): (f64, f64), anchor: &str, size: u32, text: &str) {
    let text = text.replace('&', "&amp;").replace('<', "&lt;");
    let _ = writeln!(
        svg,
        "<text x=\"{x:.1}\" y=\"{y:.1}\" text-anchor=\"{anchor}\" font-size=\"{size}\">{text}</text>"
    );
}

fn line(svg: &mut String, [(x1, y1), (x2, y2)]: [(f64, f64); 2]) {
    let _ = writeln!(
        svg,
        "<line x1=\"{x1:.1}\" y1=\"{y1:.1}\" x2=\"{x2:.1}\" y2=\"{y2:.1}\" stroke=\"#ddd\"/>"
    );
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_line_is_drawn_within_the_box_and_named() {
        let plot = Lines {
            title: "a < b",
            x_label: "x",
            y_label: "y",
            series: vec![Series {
                name: "one",
                points: vec![(10.0, 3.0), (10_000.0, 4000.0), (0.0, 1.0)],
            }],
        };
        let svg = plot.svg();
        assert!(svg.contains("a &lt; b") && svg.contains(">one<"), "{svg}");
        assert_eq!(svg.matches("<circle").count(), 2);
        assert!(svg.contains("70.0,") && svg.contains("540.0,"), "{svg}");
    }

    #[test]
    fn the_longest_bar_fills_the_plot_and_the_others_are_parts_of_it() {
        let plot = Bars {
            title: "costs",
            groups: vec![Group {
                name: "path",
                bars: vec![
                    ("one", 50.0, "50".to_owned()),
                    ("two", 100.0, "100 (+100 %)".to_owned()),
                ],
            }],
        };
        let svg = plot.svg();
        assert!(
            svg.contains("width=\"165.0\"") && svg.contains("width=\"330.0\""),
            "{svg}"
        );
        assert!(svg.contains(">100 (+100 %)<"), "{svg}");
    }
}
