//! RFC 4251, section 5, as far as keys and signatures need it.

/// A number of at most this many bytes fits P-256, with the zero that keeps it positive.
const MPINT_BYTES_MAX: usize = 33;

/// The bytes that are still to be read. Whatever is not there, or longer than what is there, is `None`.
pub(super) struct Reader<'a>(&'a [u8]);

impl<'a> Reader<'a> {
    pub(super) const fn new(bytes: &'a [u8]) -> Self {
        Self(bytes)
    }

    pub(super) fn byte(&mut self) -> Option<u8> {
        let (first, rest) = self.0.split_first()?;
        self.0 = rest;
        Some(*first)
    }

    pub(super) fn number(&mut self) -> Option<u32> {
        let (first, rest) = self.0.split_first_chunk()?;
        self.0 = rest;
        Some(u32::from_be_bytes(*first))
    }

    pub(super) fn string(&mut self) -> Option<&'a [u8]> {
        let len = usize::try_from(self.number()?).ok()?;
        let (string, rest) = self.0.split_at_checked(len)?;
        self.0 = rest;
        Some(string)
    }

    /// A positive number of arbitrary precision, in the one way of writing it: no needless zero in front.
    pub(super) fn positive(&mut self) -> Option<&'a [u8]> {
        let bytes = self.string()?;
        let is_shortest = match bytes {
            [] => false,
            [0, second, ..] => second & 0x80 != 0,
            [0] => false,
            [first, ..] => first & 0x80 == 0,
        };
        (is_shortest && bytes.len() <= MPINT_BYTES_MAX).then_some(bytes)
    }

    pub(super) const fn rest(&self) -> &'a [u8] {
        self.0
    }

    /// Succeeds if nothing is left.
    pub(super) fn end(&self) -> Option<()> {
        self.0.is_empty().then_some(())
    }
}

/// Appends a string. Nothing that is written here comes near 4 GiB.
pub(super) fn put_string(out: &mut Vec<u8>, string: &[u8]) {
    let len = u32::try_from(string.len()).expect("messages to an agent are bounded far below 4 GiB");
    out.extend_from_slice(&len.to_be_bytes());
    out.extend_from_slice(string);
}
