//! Curves as SVG text: one line, two axes, no script.

use std::collections::BTreeMap;
use std::fmt::Write;

const WIDTH: f64 = 360.0;
const HEIGHT: f64 = 140.0;
/// Margin for the numbers of the axes.
const LEFT: f64 = 54.0;
const BELOW: f64 = 18.0;

/// A number with as many digits as its neighbours require.
fn short(value: f64) -> String {
    match value.abs() {
        0.0 => "0".into(),
        a if !(0.001..1e5).contains(&a) => format!("{value:.1e}"),
        a if a >= 100.0 => format!("{value:.0}"),
        a if a >= 1.0 => format!("{value:.2}"),
        _ => format!("{value:.3}"),
    }
}

/// One curve; points that are not finite are left out. `name` must be plain text.
pub fn svg(name: &str, points: &BTreeMap<i64, f64>) -> String {
    let points: Vec<(f64, f64)> = points.iter().filter(|(_, y)| y.is_finite()).map(|(x, y)| (*x as f64, *y)).collect();
    let range = |values: &mut dyn Iterator<Item = f64>| {
        values.fold((f64::INFINITY, f64::NEG_INFINITY), |(low, high), v| (low.min(v), high.max(v)))
    };
    let (x0, x1) = range(&mut points.iter().map(|p| p.0));
    let (y0, y1) = range(&mut points.iter().map(|p| p.1));
    let mut out = format!(
        "<figure><figcaption>{name}</figcaption><svg viewBox=\"0 0 {WIDTH} {HEIGHT}\" role=\"img\" \
         aria-label=\"{name}, {} points\">",
        points.len()
    );
    if points.is_empty() {
        out.push_str("</svg></figure>");
        return out;
    }
    let span = |low: f64, high: f64| if high > low { high - low } else { 1.0 };
    let px = |x: f64| LEFT + (x - x0) / span(x0, x1) * (WIDTH - LEFT - 8.0);
    let py = |y: f64| HEIGHT - BELOW - (y - y0) / span(y0, y1) * (HEIGHT - BELOW - 10.0);
    let mut line = String::new();
    for (x, y) in &points {
        // Writing to a string cannot fail.
        let _ = write!(line, "{:.1},{:.1} ", px(*x), py(*y));
    }
    let (bottom, right) = (HEIGHT - BELOW, WIDTH - 8.0);
    let _ = write!(
        out,
        "<path class=\"axis\" d=\"M{LEFT},6V{bottom}H{right}\"/>\
         <text x=\"{}\" y=\"14\" text-anchor=\"end\">{}</text><text x=\"{}\" y=\"{bottom}\" text-anchor=\"end\">{}</text>\
         <text x=\"{LEFT}\" y=\"{}\">{x0}</text><text x=\"{right}\" y=\"{}\" text-anchor=\"end\">{x1}</text>",
        LEFT - 4.0,
        short(y1),
        LEFT - 4.0,
        short(y0),
        HEIGHT - 4.0,
        HEIGHT - 4.0,
    );
    match points.len() {
        1 => {
            let _ = write!(
                out,
                "<circle class=\"dot\" cx=\"{:.1}\" cy=\"{:.1}\" r=\"3\"/>",
                px(points[0].0),
                py(points[0].1)
            );
        }
        _ => {
            let _ = write!(out, "<polyline class=\"curve\" points=\"{}\"/>", line.trim_end());
        }
    }
    out.push_str("</svg></figure>");
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_curve_stays_in_its_frame() {
        let points = BTreeMap::from([(1, 2.0), (2, f64::NAN), (3, -1.0)]);
        let text = svg("loss", &points);
        assert!(text.contains("loss, 2 points") && text.contains("54.0,10.0 352.0,122.0"), "{text}");
        assert!(svg("x", &BTreeMap::new()).contains("0 points"));
        assert!(svg("x", &BTreeMap::from([(5, 1.0)])).contains("circle"));
    }
}
