//! What may go wrong in the network while a fleet flips.

use crate::world::{Trouble, World, run};

struct Nothing;

impl Trouble for Nothing {
    fn before_step(&mut self, _: &mut World<'_>) {}
}

#[test]
fn without_trouble() {
    let began = std::time::Instant::now();
    let first = run(1, 3, &mut Nothing);
    panic!("{:?} {:?} {:?}\n{}", began.elapsed(), first.took, first.outcomes, first.trace.join("\n"));
}
