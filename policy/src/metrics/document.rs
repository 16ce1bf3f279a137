//! `docs/metrics.md`: the page that says what each metric is, made from the metrics themselves.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;

use super::Metrics;

/// What the page begins with.
const HEAD: &str = "\
# Metrics of selvage-policy

Written by `selvage-policy document metrics`; `make unit` fails when it is not what the code says.

`GET /metrics` on `--metrics-address` (port 9095 of each node), in OpenMetrics text. The port is bound once the
instance holds the node's lock: while two instances are on a node, the one that enforces answers. All counters begin
at 0 with the process. Buckets of histograms: 0.25 ms, doubling, up to 8.2 s.

What to watch:

| question | expression |
|---|---|
| Is every node enforced? | `selvage_policy_ready == 0`, and nodes without the series |
| Does a node act on old news? | `selvage_policy_watch_age_seconds > 150` |
| How long until a change is in force? | `histogram_quantile(0.99, sum by (le, resource) (rate(selvage_policy_object_to_kernel_seconds_bucket[5m])))` |
| Is the kernel refusing something? | `rate(selvage_policy_applies_total{outcome=\"failed\"}[5m]) > 0` |
| Does somebody else change our rules? | `increase(selvage_policy_repairs_total[1h]) > 0` |
| Which policies deny more than they say? | `selvage_policy_policies{state=\"rejected\"} > 0`, then `kubectl get events -A --field-selector reason=NotUnderstood` |

Symptoms, and what to do about them: [operations.md](operations.md).
";

/// One metric, as a scrape shows it.
#[derive(Debug, Default)]
struct Shown {
    help: String,
    kind: String,
    /// Values by label, in the order in which labels come.
    labels: Vec<(String, BTreeSet<String>)>,
}

/// The whole page.
#[must_use]
pub fn page() -> String {
    let text = Metrics::new().render();
    let mut page = format!("{HEAD}\n| metric | type | labels | what |\n|---|---|---|---|\n");
    for (name, shown) in &shown(&text) {
        let suffix = match shown.kind.as_str() {
            "counter" => "_total",
            "info" => "_info",
            _ => "",
        };
        let labels: Vec<String> = shown.labels.iter().map(label).collect();
        let Shown { help, kind, .. } = shown;
        let labels = labels.join("; ");
        writeln!(page, "| `{name}{suffix}` | {kind} | {labels} | {help} |")
            .expect("a String takes any text");
    }
    page
}

/// A label with its values, where these are a closed set of words.
fn label((name, values): &(String, BTreeSet<String>)) -> String {
    let values: Vec<&str> = values.iter().map(String::as_str).collect();
    // The version of the build is in the page's own place.
    if name == "version" {
        return format!("`{name}`");
    }
    format!("`{name}`: {}", values.join(", "))
}

/// The metrics of a scrape by name.
fn shown(text: &str) -> BTreeMap<String, Shown> {
    let mut all: BTreeMap<String, Shown> = BTreeMap::new();
    let mut current = String::new();
    for line in text.lines() {
        if let Some((name, help)) = described(line, "# HELP ") {
            current = name.to_owned();
            all.entry(current.clone()).or_default().help = help.trim_end_matches('.').to_owned();
        } else if let Some((name, kind)) = described(line, "# TYPE ") {
            all.entry(name.to_owned()).or_default().kind = kind.to_owned();
        } else if let Some(shown) = all.get_mut(&current)
            && let Some((_, labels)) = line.split_once('{')
            && let Some((labels, _)) = labels.split_once('}')
        {
            for pair in labels.split(',') {
                note(shown, pair);
            }
        }
    }
    all
}

fn described<'a>(line: &'a str, begins: &str) -> Option<(&'a str, &'a str)> {
    line.strip_prefix(begins)?.split_once(' ')
}

/// Takes in `label="value"`; a histogram's bounds are no label to its readers.
fn note(shown: &mut Shown, pair: &str) {
    let Some((name, value)) = pair.split_once('=').filter(|(name, _)| *name != "le") else {
        return;
    };
    let value = value.trim_matches('"').to_owned();
    match shown.labels.iter_mut().find(|(known, _)| known == name) {
        Some((_, values)) => drop(values.insert(value)),
        None => shown.labels.push((name.to_owned(), [value].into())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_page_in_docs_is_the_one_that_the_code_writes() {
        let written = include_str!("../../../docs/metrics.md");
        assert!(
            written == page(),
            "docs/metrics.md is not what the code says; write it anew:\n\
             cargo run -p selvage-policy -- document metrics > docs/metrics.md"
        );
    }

    #[test]
    fn labels_are_listed_with_their_values_and_buckets_are_not_labels() {
        let text = "# HELP a_seconds About a.\n# TYPE a_seconds histogram\n\
                    a_seconds_bucket{le=\"1.0\",k=\"y\"} 0\na_seconds_count{k=\"x\"} 0\n# EOF\n";
        let shown = shown(text);
        let a = &shown["a_seconds"];
        assert_eq!((a.help.as_str(), a.kind.as_str()), ("About a", "histogram"));
        assert_eq!(
            a.labels.iter().map(label).collect::<Vec<_>>(),
            ["`k`: x, y"]
        );
    }
}
