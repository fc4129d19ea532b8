//! Prometheus text, made at scrape time from absolute values.
//!
//! The registry and the text are `metrics-exporter-prometheus`'s; nothing is registered globally
//! and nothing on a data path knows of it: each scrape fills a fresh recorder from what the
//! workers published, so a disk that is gone is gone from the next scrape.
//!
//! The exporter's own histograms collect raw samples and cannot be given finished buckets, so
//! histograms are written with its line formatter, after the rest; so are counters of time.

use axum::http::header;
use axum::response::{IntoResponse, Response};
use metrics::{Key, Label, Level, Metadata, Recorder};
use metrics_exporter_prometheus::{LabelSet, PrometheusBuilder, PrometheusRecorder, formatting};

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
#[derive(Debug)]
pub struct Exposition {
    recorder: PrometheusRecorder,
    /// Families that the recorder cannot write: their lines.
    written: Vec<(&'static Family, String)>,
}

impl Default for Exposition {
    fn default() -> Self {
        Self {
            recorder: PrometheusBuilder::new().build_recorder(),
            written: Vec::new(),
        }
    }
}

impl Exposition {
    /// Sets a time series of a counter; `value` is the total so far.
    pub fn counter(&self, family: &'static Family, labels: Labels<'_>, value: u64) {
        self.recorder
            .describe_counter(family.name.into(), None, family.help.into());
        self.recorder
            .register_counter(&key(family, labels), &METADATA)
            .absolute(value);
    }

    /// Sets a time series of a gauge.
    pub fn gauge(&self, family: &'static Family, labels: Labels<'_>, value: f64) {
        self.recorder
            .describe_gauge(family.name.into(), None, family.help.into());
        self.recorder
            .register_gauge(&key(family, labels), &METADATA)
            .set(value);
    }

    /// Sets a time series of a counter of time, in seconds, of which the recorder's counters know
    /// only whole ones; `total_ns` is the total so far.
    pub fn time(&mut self, family: &'static Family, labels: Labels<'_>, total_ns: u64) {
        let labels = LabelSet::from_key_and_global(&key(family, labels), &Default::default());
        let none = None::<(&str, &str)>;
        let text = self.text_of(family, "counter");
        let value = seconds(total_ns);
        formatting::write_metric_line(text, family.name, None, &labels, none, value, None);
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
        let text = self.text_of(family, "histogram");
        let labels = LabelSet::from_key_and_global(&key(family, labels), &Default::default());
        let mut bucket = |bound: String, value| {
            let bound = Some(("le", bound));
            let suffix = Some("bucket");
            formatting::write_metric_line(text, family.name, suffix, &labels, bound, value, None);
        };
        for (upper_ns, cumulative) in buckets {
            bucket(seconds(*upper_ns).to_string(), *cumulative);
        }
        bucket("+Inf".to_owned(), count);
        let mut total = |suffix, value: f64| {
            let suffix = Some(suffix);
            let none = None::<(&str, &str)>;
            formatting::write_metric_line(text, family.name, suffix, &labels, none, value, None);
        };
        total("sum", seconds(sum_ns));
        total("count", approximate(count));
    }

    /// The text to send, of content type [`CONTENT_TYPE`].
    pub fn render(self) -> String {
        let mut text = self.recorder.handle().render();
        text.extend(self.written.into_iter().map(|(_, lines)| lines));
        text
    }

    /// The lines of `family` so far: a family's series must stand together under one header.
    fn text_of(&mut self, family: &'static Family, kind: &str) -> &mut String {
        let known = self
            .written
            .iter()
            .position(|(other, _)| other.name == family.name);
        let index = known.unwrap_or_else(|| {
            let mut text = String::new();
            formatting::write_help_line(&mut text, family.name, None, None, family.help);
            formatting::write_type_line(&mut text, family.name, None, None, kind);
            self.written.push((family, text));
            self.written.len() - 1
        });
        &mut self.written[index].1
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

const METADATA: Metadata<'static> = Metadata::new("towpath", Level::INFO, None);

fn key(family: &Family, labels: Labels<'_>) -> Key {
    let labels: Vec<Label> = labels
        .iter()
        .map(|(name, value)| Label::new(*name, (*value).to_owned()))
        .collect();
    Key::from_parts(family.name, labels)
}

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
        let scrape = Exposition::default();
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
