//! Integration tests: the real programs, real files and real processes.

mod guard;
