//! Integration tests: the real programs, real files and real processes.

mod demo;
mod guard;
mod harness;
mod smoke;
