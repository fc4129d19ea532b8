//! Prometheus text, made at scrape time from absolute values.
//!
//! Nothing is registered anywhere and nothing on a data path knows of it: each scrape writes what
//! the workers published, so a disk that is gone is gone from the next scrape.
//!
//! A recorder of the `metrics` crate, filled and rendered anew at each scrape, took most of the
//! time of one: every series is hashed, boxed, locked and copied on its way to one line of text.
//! Lines are therefore written at once, a family's together, under the headers that
//! `metrics-exporter-prometheus` formats.

use std::fmt::{Display, Write};

use axum::http::header;
use axum::response::{IntoResponse, Response};
use metrics_exporter_prometheus::formatting;

/// What kind of time series a [`Family`] is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Only grows.
    Counter,
    /// Goes up and down.
    Gauge,
    /// Seconds, by bucket.
    Histogram,
}

impl Kind {
    /// As in a TYPE line.
    const fn name(self) -> &'static str {
        match self {
            Self::Counter => "counter",
            Self::Gauge => "gauge",
            Self::Histogram => "histogram",
        }
    }
}

/// A metric: its name, kind and meaning. A daemon keeps a table of these.
#[derive(Clone, Copy, Debug)]
pub struct Family {
    /// The full name, unit and `_total` included.
    pub name: &'static str,
    /// The kind.
    pub kind: Kind,
    /// One sentence.
    pub help: &'static str,
}

/// Defines a table of [`Family`]s, each a static, all of them in `FAMILIES`.
#[macro_export]
macro_rules! families {
    ($($id:ident: $kind:ident $name:literal $help:literal;)*) => {
        $(static $id: $crate::control::exposition::Family = $crate::control::exposition::Family {
            name: $name,
            kind: $crate::control::exposition::Kind::$kind,
            help: $help,
        };)*
        /// Every metric the daemon exports.
        pub const FAMILIES: &[&$crate::control::exposition::Family] = &[$(&$id),*];
    };
}

/// Label names and values of one time series.
pub type Labels<'a> = &'a [(&'static str, &'a str)];

/// One scrape in the making.
#[derive(Debug, Default)]
pub struct Exposition {
    /// The lines of each family so far, in the order of their first series.
    families: Vec<(&'static Family, String)>,
    /// Where the last series went: the next one is often beside it.
    last: usize,
}

impl Exposition {
    /// Sets a time series of a counter; `value` is the total so far.
    pub fn counter(&mut self, family: &'static Family, labels: Labels<'_>, value: u64) {
        self.line(family, ("", value), labels, None);
    }

    /// Sets a time series of a gauge.
    pub fn gauge(&mut self, family: &'static Family, labels: Labels<'_>, value: f64) {
        self.line(family, ("", value), labels, None);
    }

    /// Sets a time series of a counter of time, in seconds; `total_ns` is the total so far.
    pub fn time(&mut self, family: &'static Family, labels: Labels<'_>, total_ns: u64) {
        self.line(family, ("", seconds(total_ns)), labels, None);
    }

    /// Sets a time series of a histogram. `buckets` are `(upper bound in ns, how many samples are
    /// at or below it)`, ascending, with the same bounds at every scrape; `sum_ns` is the sum of
    /// all samples and `count` their number.
    pub fn histogram(
        &mut self,
        family: &'static Family,
        labels: Labels<'_>,
        buckets: &[(u64, u64)],
        sum_ns: u64,
        count: u64,
    ) {
        for (upper_ns, cumulative) in buckets {
            let bound = seconds(*upper_ns).to_string();
            self.line(family, ("_bucket", *cumulative), labels, Some(&bound));
        }
        self.line(family, ("_bucket", count), labels, Some("+Inf"));
        self.line(family, ("_sum", seconds(sum_ns)), labels, None);
        self.line(family, ("_count", count), labels, None);
    }

    /// The text to send, of content type [`CONTENT_TYPE`].
    pub fn render(self) -> String {
        let length = self.families.iter().map(|(_, lines)| lines.len() + 1).sum();
        let mut text = String::with_capacity(length);
        for (_, lines) in self.families {
            text.push_str(&lines);
            text.push('\n');
        }
        text
    }

    /// One line: the family's name and `suffix`, labels, for a bucket its `bound`, `value`.
    fn line(
        &mut self,
        family: &'static Family,
        (suffix, value): (&str, impl Display),
        labels: Labels<'_>,
        bound: Option<&str>,
    ) {
        let text = self.text_of(family);
        text.push_str(family.name);
        text.push_str(suffix);
        let bound = bound.map(|bound| ("le", bound));
        let mut before = '{';
        for (name, value) in labels.iter().copied().chain(bound) {
            text.push(before);
            text.push_str(name);
            text.push_str("=\"");
            // Names of disks and ports have nothing in them that needs it; paths may.
            if value.contains(['\\', '"', '\n']) {
                text.push_str(&formatting::sanitize_label_value(value));
            } else {
                text.push_str(value);
            }
            text.push('"');
            before = ',';
        }
        if before == ',' {
            text.push('}');
        }
        // Writing to a String cannot fail.
        let _ = writeln!(text, " {value}");
    }

    /// The lines of `family` so far: a family's series must stand together under one header.
    fn text_of(&mut self, family: &'static Family) -> &mut String {
        let is_it = |(other, _): &(&Family, String)| std::ptr::eq(*other, family);
        if !self.families.get(self.last).is_some_and(is_it) {
            self.last = self.families.iter().position(is_it).unwrap_or_else(|| {
                let mut text = String::new();
                let kind = family.kind.name();
                formatting::write_help_line(&mut text, family.name, None, None, family.help);
                formatting::write_type_line(&mut text, family.name, None, None, kind);
                self.families.push((family, text));
                self.families.len() - 1
            });
        }
        &mut self.families[self.last].1
    }
}

/// The answer to a scrape.
#[derive(Clone, Debug)]
pub struct Text(pub String);

impl IntoResponse for Text {
    fn into_response(self) -> Response {
        ([(header::CONTENT_TYPE, CONTENT_TYPE)], self.0).into_response()
    }
}

/// The content type of the Prometheus text format.
pub const CONTENT_TYPE: &str = "text/plain; version=0.0.4; charset=utf-8";

fn seconds(ns: u64) -> f64 {
    approximate(ns) / 1e9
}

/// As close as an `f64` gets: exact below 2^53.
#[expect(
    clippy::cast_precision_loss,
    reason = "Prometheus values are f64 by definition"
)]
pub fn approximate(value: u64) -> f64 {
    value as f64
}

#[cfg(test)]
mod tests {
    use super::*;

    static OPS: Family = Family {
        name: "x_ops_total",
        kind: Kind::Counter,
        help: "Operations.",
    };
    static UP: Family = Family {
        name: "x_up",
        kind: Kind::Gauge,
        help: "Up.",
    };
    static TIME: Family = Family {
        name: "x_seconds",
        kind: Kind::Histogram,
        help: "Time.",
    };

    #[test]
    fn time_is_counted_in_parts_of_a_second() {
        static BUSY: Family = Family {
            name: "x_busy_seconds_total",
            kind: Kind::Counter,
            help: "Busy.",
        };
        let mut scrape = Exposition::default();
        scrape.time(&BUSY, &[("disk", "a")], 1_500_000_000);
        scrape.time(&BUSY, &[("disk", "b")], 2_000_000);
        let expected = "# HELP x_busy_seconds_total Busy.\n\
                        # TYPE x_busy_seconds_total counter\n\
                        x_busy_seconds_total{disk=\"a\"} 1.5\n\
                        x_busy_seconds_total{disk=\"b\"} 0.002\n";
        let text = scrape.render();
        assert!(text.contains(expected), "{text}");
    }

    #[test]
    fn counters_and_gauges_carry_absolute_values() {
        let mut scrape = Exposition::default();
        scrape.counter(&OPS, &[("disk", "a\"b")], u64::MAX);
        scrape.gauge(&UP, &[], 0.5);
        let text = scrape.render();
        assert!(text.contains("# HELP x_ops_total Operations.\n# TYPE x_ops_total counter\n"));
        assert!(
            text.contains("x_ops_total{disk=\"a\\\"b\"} 18446744073709551615\n"),
            "{text}"
        );
        assert!(text.contains("# TYPE x_up gauge\nx_up 0.5\n"), "{text}");
    }

    #[test]
    fn histograms_are_cumulative_and_end_in_infinity() {
        let mut scrape = Exposition::default();
        let buckets = [(1_000, 3), (2_500, 4)];
        scrape.histogram(&TIME, &[("disk", "a")], &buckets, 1_500_000_000, 5);
        scrape.histogram(&TIME, &[("disk", "b")], &[], 0, 0);
        let text = scrape.render();
        assert_eq!(text.matches("# TYPE x_seconds histogram\n").count(), 1);
        for line in [
            "x_seconds_bucket{disk=\"a\",le=\"0.000001\"} 3\n",
            "x_seconds_bucket{disk=\"a\",le=\"0.0000025\"} 4\n",
            "x_seconds_bucket{disk=\"a\",le=\"+Inf\"} 5\n",
            "x_seconds_sum{disk=\"a\"} 1.5\nx_seconds_count{disk=\"a\"} 5\n",
            "x_seconds_bucket{disk=\"b\",le=\"+Inf\"} 0\n",
        ] {
            assert!(text.contains(line), "{line} not in\n{text}");
        }
    }
}
