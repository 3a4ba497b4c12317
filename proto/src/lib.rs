//! The wire: the protobuf package `fleet.v1`, and its conversion to and from the model.
//!
//! Generated types never leave this crate and the gRPC edges: everything else works on `muster-model`, whose values
//! are valid by construction. So conversion from the wire can fail, with the field's name, and conversion to it cannot.

#[allow(
    missing_docs,
    unreachable_pub,
    clippy::all,
    clippy::too_many_lines,
    reason = "generated; the proto files carry the documentation"
)]
pub mod v1 {
    tonic::include_proto!("fleet.v1");
}

pub mod convert;

/// The encoded descriptors of the package, for the reflection service.
pub const DESCRIPTORS: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/fleet.v1.bin"));

/// The version of the protocol that agents and coordinators of this build speak.
pub const PROTOCOL: u32 = 2;
