//! The checked-in code is what `protoc` makes of `proto/` today.

use std::path::Path;
use std::{env, fs};

/// (proto file, file that the generator names after the package, file that is checked in)
const FILES: [(&str, &str, &str); 3] = [
    ("ipam.proto", "rpc.rs", "ipam.rs"),
    ("health.proto", "grpc.health.v1.rs", "health.rs"),
    ("inspection.proto", "selvage.ipamd.v1.rs", "inspection.rs"),
];

#[test]
fn generated_code_is_what_the_proto_files_say() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let out = tempfile::tempdir().unwrap();
    let protos = FILES.map(|(proto, _, _)| root.join("proto").join(proto));
    tonic_prost_build::configure()
        .out_dir(out.path())
        .emit_rerun_if_changed(false)
        // No connect() over tonic's own channel: `client::call` is how ipamd is reached.
        .build_transport(false)
        .client_mod_attribute(".", "#[cfg(feature = \"client\")]")
        .server_mod_attribute(".", "#[cfg(feature = \"server\")]")
        .compile_protos(&protos, &[root.join("proto")])
        .expect("protoc (package protobuf-compiler) makes the code");
    for (proto, made, checked_in) in FILES {
        let made = fs::read_to_string(out.path().join(made)).unwrap();
        let path = root.join("src/generated").join(checked_in);
        if env::var_os("SELVAGE_BLESS").is_some() {
            fs::write(&path, &made).unwrap();
        }
        let checked_in = fs::read_to_string(&path).unwrap_or_default();
        assert!(
            made == checked_in,
            "{} is not what {proto} makes: run this test with SELVAGE_BLESS=1",
            path.display()
        );
    }
}
