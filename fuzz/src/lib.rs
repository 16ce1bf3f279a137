//! Every parser of what others wrote, as a function of bytes that panics when a promise is broken.
//!
//! ```text
//!  engine/ (libFuzzer, a workspace of its own) ─┐
//!                                               ├─> TARGETS ─> netfilter, policy-core, policy; cni, ipamd
//!  corpus/<target>/* (replayed by a test)      ─┘
//! ```
//!
//! `make fuzz` looks for new inputs; the corpus is what it found so far, minimised. Each input
//! reaches something that no other does.

mod addressing;
mod cluster;
mod feed;
mod imds;
mod kernel;
mod objects;
mod rules;

/// Something that takes any bytes.
#[derive(Debug, Clone, Copy)]
pub struct Target {
    /// What it is called: on the command line, and the folder of its corpus.
    pub name: &'static str,
    /// Takes any bytes.
    ///
    /// *Panics*: when a promise is broken.
    pub run: fn(&[u8]),
}

/// All of them.
pub const TARGETS: [Target; 17] = [
    Target {
        name: "annotations",
        run: objects::annotations,
    },
    Target {
        name: "checkpoint",
        run: addressing::checkpoint,
    },
    Target {
        name: "cluster",
        run: cluster::any,
    },
    Target {
        name: "cni",
        run: addressing::cni,
    },
    Target {
        name: "conflist",
        run: addressing::conflist,
    },
    Target {
        name: "conntrack",
        run: kernel::conntrack,
    },
    Target {
        name: "imds",
        run: imds::any,
    },
    Target {
        name: "ipset",
        run: kernel::ipset,
    },
    Target {
        name: "legacy",
        run: kernel::legacy,
    },
    Target {
        name: "netlink",
        run: kernel::netlink,
    },
    Target {
        name: "nflog",
        run: kernel::nflog,
    },
    Target {
        name: "nftables",
        run: kernel::nftables,
    },
    Target {
        name: "objects",
        run: objects::any,
    },
    Target {
        name: "reader",
        run: selvage_policy::direct::read_any,
    },
    Target {
        name: "result",
        run: addressing::result,
    },
    Target {
        name: "routes",
        run: kernel::routes,
    },
    Target {
        name: "tools",
        run: kernel::tools,
    },
];

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::TARGETS;

    #[test]
    fn what_fuzzing_has_found_breaks_no_promise() {
        let corpus = Path::new(env!("CARGO_MANIFEST_DIR")).join("corpus");
        for target in TARGETS {
            let folder = corpus.join(target.name);
            let mut inputs = 0;
            for entry in std::fs::read_dir(&folder).unwrap() {
                let path = entry.unwrap().path();
                println!("{}", path.display());
                (target.run)(&std::fs::read(&path).unwrap());
                inputs += 1;
            }
            assert!(inputs > 0, "{} has no corpus", target.name);
        }
    }

    #[test]
    fn no_corpus_is_left_without_its_target() {
        let corpus = Path::new(env!("CARGO_MANIFEST_DIR")).join("corpus");
        for entry in std::fs::read_dir(corpus).unwrap() {
            let name = entry.unwrap().file_name();
            let known = TARGETS.iter().any(|target| name == target.name);
            assert!(known, "{name:?} is no target");
        }
    }
}
