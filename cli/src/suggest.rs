//! What was probably meant by a word that is not known.

/// From here on two words are alike enough for one to be a slip of the other; 1 is equality.
const LIKENESS_MIN: f64 = 0.8;

/// The candidate that is most like `word`, if any is like it at all.
pub(crate) fn closest<'a>(word: &str, candidates: impl IntoIterator<Item = &'a str>) -> Option<&'a str> {
    candidates
        .into_iter()
        .map(|candidate| (strsim::jaro_winkler(word, candidate), candidate))
        .filter(|(likeness, _)| *likeness >= LIKENESS_MIN)
        .max_by(|(one, _), (other, _)| one.total_cmp(other))
        .map(|(_, candidate)| candidate)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_slip_is_recognised_and_a_stranger_is_not() {
        let known = ["mismatch", "host-missing", "not-deployed"];
        assert_eq!(closest("mismtach", known), Some("mismatch"));
        assert_eq!(closest("host-mising", known), Some("host-missing"));
        assert_eq!(closest("410", known), None);
        assert_eq!(closest("", known), None);
    }
}
