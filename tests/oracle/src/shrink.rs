//! The smallest part of a cluster that still shows a difference.

use serde_json::Value;

/// Takes away entries of lists and fields of objects, the largest first, for as long as `shows`
/// still holds of what is left. Names and uids stay: without them an object is another one; and so
/// does the text of an address, without which the entry around it would be unreadable.
///
/// *Cost*: quadratic in the number of fields, times `shows`.
#[must_use]
pub fn shrink(cluster: &Value, shows: &mut dyn FnMut(&Value) -> bool) -> Value {
    let mut least = cluster.clone();
    loop {
        let mut smaller = false;
        // A path that is gone by the time it is tried belongs to something taken away before.
        for path in paths(&least) {
            let mut candidate = least.clone();
            if take(&mut candidate, &path) && shows(&candidate) {
                least = candidate;
                smaller = true;
            }
        }
        if !smaller {
            return least;
        }
    }
}

#[derive(Clone)]
enum Step {
    Field(String),
    Entry(usize),
}

/// Every place in the tree, outer ones first; entries of a list from its end, so that taking one
/// leaves the places of the others as they are.
fn paths(tree: &Value) -> Vec<Vec<Step>> {
    let mut found: Vec<Vec<Step>> = Vec::new();
    let mut level = vec![(Vec::new(), tree)];
    while !level.is_empty() {
        let mut next = Vec::new();
        for (path, value) in level {
            let mut child = |step: Step, value| {
                let mut path: Vec<Step> = path.clone();
                path.push(step);
                next.push((path, value));
            };
            match value {
                Value::Array(entries) => {
                    for (index, entry) in entries.iter().enumerate().rev() {
                        child(Step::Entry(index), entry);
                    }
                }
                Value::Object(fields) => {
                    for (name, field) in fields {
                        child(Step::Field(name.clone()), field);
                    }
                }
                Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) => {}
            }
        }
        found.extend(next.iter().map(|(path, _)| path.clone()));
        level = next;
    }
    found
}

fn take(tree: &mut Value, path: &[Step]) -> bool {
    let Some((last, parents)) = path.split_last() else {
        return false;
    };
    let mut at = tree;
    for step in parents {
        let next = match step {
            Step::Field(name) => at.get_mut(name),
            Step::Entry(index) => at.get_mut(index),
        };
        match next {
            Some(next) => at = next,
            None => return false,
        }
    }
    match (last, at) {
        (Step::Field(name), Value::Object(fields)) => {
            let identity = ["metadata", "name", "namespace", "uid", "ip"].contains(&name.as_str());
            !identity && fields.remove(name).is_some()
        }
        (Step::Entry(index), Value::Array(entries)) => {
            let there = *index < entries.len();
            if there {
                entries.remove(*index);
            }
            there
        }
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::shrink;

    #[test]
    fn what_the_difference_needs_stays_and_the_rest_goes() {
        let cluster = json!({
            "pods": [
                {"metadata": {"name": "a", "labels": {"x": "y"}}, "spec": {"hostNetwork": false}},
                {"metadata": {"name": "b", "labels": {"x": "y", "z": ""}}},
            ],
            "policies": [1, 2, 3],
        });
        let mut shows = |cluster: &serde_json::Value| {
            let pods = cluster["pods"].as_array();
            let pods = pods.into_iter().flatten();
            let has_x = |pod: &serde_json::Value| pod["metadata"]["labels"]["x"] == "y";
            pods.filter(|pod| pod["metadata"]["name"] == "b").any(has_x)
        };
        assert_eq!(
            shrink(&cluster, &mut shows),
            json!({"pods": [{"metadata": {"name": "b", "labels": {"x": "y"}}}]})
        );
    }
}
