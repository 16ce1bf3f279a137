//! libFuzzer around one target, which `SELVAGE_FUZZ` names.

#![no_main]

use std::sync::OnceLock;

use selvage_fuzz::{TARGETS, Target};

/// The one that is asked for.
fn target() -> Target {
    static TARGET: OnceLock<Target> = OnceLock::new();
    *TARGET.get_or_init(|| {
        let names: Vec<&str> = TARGETS.iter().map(|it| it.name).collect();
        let name = std::env::var("SELVAGE_FUZZ").unwrap_or_default();
        let found = TARGETS.into_iter().find(|it| it.name == name);
        found.unwrap_or_else(|| panic!("SELVAGE_FUZZ={name:?}: want one of {names:?}"))
    })
}

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| (target().run)(bytes));
