//! Every cluster in `tests/golden`, as the sets and rules that reach the kernel.

#[path = "support/cluster.rs"]
#[allow(dead_code, reason = "each test binary uses its part")]
mod cluster;

use std::fmt::Write as _;
use std::path::Path;

use selvage_policy_core::compile::compile;
use selvage_policy_core::observe::Observed;
use selvage_policy_core::plan::plan;
use selvage_policy_core::render::render;
use selvage_policy_core::ruleset::Family;
use serde_json::Value;

fn list<'a>(cluster: &'a Value, key: &str) -> &'a [Value] {
    cluster[key].as_array().map_or(&[], Vec::as_slice)
}

/// From nothing: the sets with their members, then the restore input.
fn kernel_text(cluster: &Value) -> String {
    let mut index = cluster::index(
        list(cluster, "namespaces"),
        list(cluster, "pods"),
        list(cluster, "policies"),
    );
    let mut text = String::new();
    for family in cluster["families"].as_array().unwrap() {
        let family = match family.as_str().unwrap() {
            "IPv4" => Family::V4,
            "IPv6" => Family::V6,
            other => panic!("{other} is no family"),
        };
        let plan = plan(&compile(&mut index, family), &Observed::default());
        writeln!(text, "{family}").unwrap();
        for (name, set) in &plan.create {
            writeln!(text, "{name} {:?}", set.kind).unwrap();
            for member in &set.members {
                writeln!(text, "  {member}").unwrap();
            }
        }
        text += &render(&plan).apply.unwrap();
    }
    text
}

#[test]
#[expect(clippy::disallowed_methods, reason = "a test reads its cases")]
fn clusters_become_the_rules_that_a_reviewer_has_read() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden");
    let mut cases = 0;
    for entry in std::fs::read_dir(&folder).unwrap() {
        let path = entry.unwrap().path();
        if path.extension().is_none_or(|extension| extension != "json") {
            continue;
        }
        let cluster: Value =
            serde_json::from_str(&std::fs::read_to_string(&path).unwrap()).unwrap();
        let name = path.file_stem().unwrap().to_str().unwrap();
        insta::with_settings!({
            snapshot_path => &folder,
            prepend_module_to_snapshot => false,
            omit_expression => true,
            description => cluster["about"].as_str().unwrap(),
        }, {
            insta::assert_snapshot!(name, kernel_text(&cluster));
        });
        cases += 1;
    }
    assert!(cases > 0, "no cases in {}", folder.display());
}
