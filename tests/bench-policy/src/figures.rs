//! Figures as they are printed: one JSON object a row, read by `tests/bench`.

use std::time::Duration;

use anyhow::{Result, ensure};
use serde::Serialize;

/// One figure, beside its floor where it has one.
#[derive(Debug, Clone, Default, Serialize)]
pub struct Row {
    /// `policy/…`.
    pub name: String,
    /// The figure.
    pub value: f64,
    /// Its unit, and the floor's.
    pub unit: &'static str,
    /// What could not be saved.
    pub floor: Option<f64>,
    /// Value over floor.
    pub ratio: Option<f64>,
    /// What the ratio may be, or the value where there is none.
    pub bar: Option<f64>,
    /// Whether the bar is the least and not the most.
    pub least: bool,
    /// Least and greatest ratio of the rounds.
    pub spread: Option<(f64, f64)>,
}

impl Row {
    /// A figure without a floor.
    #[must_use]
    pub fn plain(name: impl Into<String>, value: f64, unit: &'static str) -> Self {
        Self {
            name: name.into(),
            value: rounded(value),
            unit,
            ..Self::default()
        }
    }

    /// A figure over its floor.
    #[must_use]
    pub fn over(name: impl Into<String>, value: f64, floor: f64, unit: &'static str) -> Self {
        Self {
            floor: Some(rounded(floor)),
            ratio: Some(rounded(value / floor)),
            ..Self::plain(name, value, unit)
        }
    }

    /// From rounds that took turns: the median of their ratios.
    #[must_use]
    pub fn of_rounds(
        name: impl Into<String>,
        values: &[f64],
        floors: &[f64],
        unit: &'static str,
    ) -> Self {
        let ratios: Vec<f64> = values
            .iter()
            .zip(floors)
            .map(|(value, floor)| value / floor)
            .collect();
        Self {
            ratio: Some(rounded(percentile(&ratios, 50.0))),
            spread: Some((
                rounded(percentile(&ratios, 0.0)),
                rounded(percentile(&ratios, 100.0)),
            )),
            ..Self::over(
                name,
                percentile(values, 50.0),
                percentile(floors, 50.0),
                unit,
            )
        }
    }

    /// With a floor to look at; the bar is for the value.
    #[must_use]
    pub fn beside(self, floor: f64) -> Self {
        Self {
            floor: Some(rounded(floor)),
            ..self
        }
    }

    /// With the most that it may be.
    #[must_use]
    pub fn at_most(self, bar: f64) -> Self {
        Self {
            bar: Some(bar),
            ..self
        }
    }

    /// With the least that it may be.
    #[must_use]
    pub fn at_least(self, bar: f64) -> Self {
        Self {
            bar: Some(bar),
            least: true,
            ..self
        }
    }
}

/// Four digits that mean something are enough.
fn rounded(value: f64) -> f64 {
    if value == 0.0 || !value.is_finite() {
        return value;
    }
    let digits = 3 - value.abs().log10().floor() as i32;
    let factor = 10_f64.powi(digits.clamp(0, 9));
    (value * factor).round() / factor
}

/// The nearest-rank percentile; 0 is the least.
///
/// *Panics*: without values.
#[must_use]
pub fn percentile(values: &[f64], percent: f64) -> f64 {
    let mut ordered = values.to_vec();
    ordered.sort_by(f64::total_cmp);
    let rank = (ordered.len() as f64 * percent / 100.0).ceil() as usize;
    ordered[rank.saturating_sub(1)]
}

/// Milliseconds.
#[must_use]
pub fn ms(duration: Duration) -> f64 {
    duration.as_secs_f64() * 1000.0
}

/// Prints the rows.
///
/// *Errors*: nobody reads, or there is nothing to read.
pub fn print(rows: &[Row]) -> Result<()> {
    ensure!(!rows.is_empty(), "nothing was measured");
    println!("{}", serde_json::to_string(rows)?);
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_percentile_is_a_value_that_was_seen() {
        let values: Vec<f64> = (1..=100).rev().map(f64::from).collect();
        for (percent, value) in [(0.0, 1.0), (50.0, 50.0), (99.0, 99.0), (100.0, 100.0)] {
            assert_eq!(percentile(&values, percent), value, "{percent}");
        }
        assert_eq!(percentile(&[3.0], 99.0), 3.0);
    }

    #[test]
    fn a_row_of_rounds_has_the_median_ratio() {
        let row = Row::of_rounds("x", &[2.0, 3.0, 10.0], &[1.0, 1.0, 2.0], "ms");
        assert_eq!((row.ratio, row.spread), (Some(3.0), Some((2.0, 5.0))));
        assert_eq!(rounded(1234.56), 1235.0);
        assert_eq!(rounded(0.012_345_6), 0.012_35);
    }
}
