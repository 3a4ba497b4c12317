//! The coordinator: relays, keeps count and decides when a release may flip.
