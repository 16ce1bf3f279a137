//! Label selectors: "the result of matchLabels and matchExpressions are ANDed. An empty label
//! selector matches all objects."

use serde_json::Value;

use super::list;

/// Whether a selector selects an object with these labels; `None`: it means nothing.
///
/// *Shape*: a missing selector selects everything; what a missing one means is the caller's matter.
pub(super) fn selects(selector: &Value, labels: &Value) -> Option<bool> {
    if !is_understood(selector) {
        return None;
    }
    for (key, value) in selector["matchLabels"].as_object().into_iter().flatten() {
        if labels.get(key) != Some(value) {
            return Some(false);
        }
    }
    for requirement in list(&selector["matchExpressions"]) {
        let label = requirement["key"].as_str().and_then(|key| labels.get(key));
        let listed = label.is_some_and(|value| list(&requirement["values"]).contains(value));
        let holds = match requirement["operator"].as_str() {
            Some("In") => listed,
            Some("NotIn") => !listed,
            Some("Exists") => label.is_some(),
            Some("DoesNotExist") => label.is_none(),
            _ => return None,
        };
        if !holds {
            return Some(false);
        }
    }
    Some(true)
}

/// "If the operator is In or NotIn, the values array must be non-empty. If the operator is Exists
/// or DoesNotExist, the values array must be empty." Keys and values are what labels can be.
pub(super) fn is_understood(selector: &Value) -> bool {
    let labels = selector["matchLabels"].as_object();
    let labels_are = labels
        .into_iter()
        .flatten()
        .all(|(key, value)| is_key(key) && is_value(value));
    let expressions = list(&selector["matchExpressions"]);
    labels_are
        && expressions.iter().all(|requirement| {
            let values = list(&requirement["values"]);
            let operator = requirement["operator"].as_str().unwrap_or("");
            let some = ["In", "NotIn"].contains(&operator) && !values.is_empty();
            let none = ["Exists", "DoesNotExist"].contains(&operator) && values.is_empty();
            (some || none)
                && is_key(requirement["key"].as_str().unwrap_or(""))
                && values.iter().all(is_value)
        })
}

/// "An optional prefix and name, separated by a slash. The prefix must be a DNS subdomain."
fn is_key(key: &str) -> bool {
    let Some((prefix, name)) = key.split_once('/') else {
        return is_name(key);
    };
    let label = |part: &str| {
        let inner = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-';
        !part.is_empty()
            && part.chars().all(inner)
            && !part.starts_with('-')
            && !part.ends_with('-')
    };
    prefix.len() <= 253 && prefix.split('.').all(label) && is_name(name)
}

fn is_value(value: &Value) -> bool {
    value
        .as_str()
        .is_some_and(|text| text.is_empty() || is_name(text))
}

/// "63 characters or less, beginning and ending with an alphanumeric character, with dashes,
/// underscores, dots and alphanumerics between."
fn is_name(text: &str) -> bool {
    let ends = |c: Option<char>| c.is_some_and(|c| c.is_ascii_alphanumeric());
    let inner = |c: char| c.is_ascii_alphanumeric() || ['-', '_', '.'].contains(&c);
    text.len() <= 63
        && ends(text.chars().next())
        && ends(text.chars().next_back())
        && text.chars().all(inner)
}
