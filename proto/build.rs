//! Generates the wire's types from `fleet/v1/*.proto` with a compiler written in Rust, so that no `protoc` is needed.

use std::error::Error;
use std::path::PathBuf;

use prost::Message as _;

const FILES: [&str; 4] = [
    "fleet/v1/blobs.proto",
    "fleet/v1/control.proto",
    "fleet/v1/enrolment.proto",
    "fleet/v1/operations.proto",
];

fn main() -> Result<(), Box<dyn Error>> {
    println!("cargo:rerun-if-changed=fleet");
    let files = protox::compile(FILES, ["."])?;
    let descriptors =
        PathBuf::from(std::env::var_os("OUT_DIR").ok_or("cargo sets OUT_DIR")?).join("fleet.v1.bin");
    std::fs::write(descriptors, files.encode_to_vec())?;
    // Shared by the frames to all hosts.
    tonic_prost_build::configure().bytes(".fleet.v1.Open.secrets").compile_fds(files)?;
    Ok(())
}
