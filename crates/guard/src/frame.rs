//! Frames: a length and that many bytes.

use std::io::{self, Read, Write};
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::protocol::MAX_FRAME_BYTES;

/// How long to wait for the other side.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Patience {
    /// For the first byte of a frame; `None`: for ever.
    pub(crate) idle: Option<Duration>,
    /// For the rest of a frame that has begun.
    pub(crate) frame: Duration,
}

/// Why no frame could be read.
#[derive(Debug, thiserror::Error)]
pub(crate) enum FrameError {
    #[error("a frame of {0} bytes, at most {MAX_FRAME_BYTES} and at least 1")]
    Length(u32),
    #[error("a frame that is not the expected JSON: {0}")]
    Json(serde_json::Error),
    #[error("the connection broke: {0}")]
    Io(io::Error),
}

/// Reads one frame; `None` if the other side hung up between frames.
pub(crate) fn read<T: DeserializeOwned>(
    stream: &UnixStream,
    patience: Patience,
) -> Result<Option<T>, FrameError> {
    stream.set_read_timeout(patience.idle).map_err(FrameError::Io)?;
    let mut length = [0; 4];
    if read_some(stream, &mut length[..1]).map_err(FrameError::Io)? == 0 {
        return Ok(None);
    }
    let deadline = Instant::now() + patience.frame;
    read_exact(stream, &mut length[1..], deadline).map_err(FrameError::Io)?;
    let length = u32::from_be_bytes(length);
    let bytes_len = usize::try_from(length).ok().filter(|len| (1..=MAX_FRAME_BYTES).contains(len));
    let mut bytes = vec![0; bytes_len.ok_or(FrameError::Length(length))?];
    read_exact(stream, &mut bytes, deadline).map_err(FrameError::Io)?;
    serde_json::from_slice(&bytes).map(Some).map_err(FrameError::Json)
}

/// Writes one frame in one call; the stream's write time-out bounds it.
pub(crate) fn write<T: Serialize>(mut stream: &UnixStream, frame: &T) -> io::Result<()> {
    let mut bytes = vec![0; 4];
    serde_json::to_writer(&mut bytes, frame)?;
    let len = bytes.len() - 4;
    if len > MAX_FRAME_BYTES {
        return Err(io::Error::other(format!("a frame of {len} bytes, at most {MAX_FRAME_BYTES}")));
    }
    let length = u32::try_from(len).expect("the limit of a frame fits in 32 bits");
    bytes[..4].copy_from_slice(&length.to_be_bytes());
    stream.write_all(&bytes)
}

fn read_exact(stream: &UnixStream, mut buffer: &mut [u8], deadline: Instant) -> io::Result<()> {
    while !buffer.is_empty() {
        let left = deadline.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Err(io::ErrorKind::TimedOut.into());
        }
        stream.set_read_timeout(Some(left))?;
        match read_some(stream, buffer)? {
            0 => return Err(io::ErrorKind::UnexpectedEof.into()),
            n => buffer = &mut buffer[n..],
        }
    }
    Ok(())
}

fn read_some(mut stream: &UnixStream, buffer: &mut [u8]) -> io::Result<usize> {
    loop {
        match stream.read(buffer) {
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            other => return other,
        }
    }
}

#[cfg(test)]
mod tests {
    use muster_model::{Digest, Epoch, FleetName};
    use proptest::prelude::*;

    use super::*;
    use crate::protocol::{PROTOCOL, Request, RequestFrame};

    const QUICK: Patience = Patience { idle: Some(Duration::from_secs(5)), frame: Duration::from_millis(50) };

    fn received(bytes: &[u8]) -> Result<Option<RequestFrame>, FrameError> {
        let (here, there) = UnixStream::pair().unwrap();
        (&there).write_all(bytes).unwrap();
        drop(there);
        read(&here, QUICK)
    }

    #[test]
    fn lengths_out_of_bounds_are_refused_before_the_body_is_read() {
        for length in [0_u32, 64 * 1024 + 1, u32::MAX] {
            assert!(matches!(received(&length.to_be_bytes()), Err(FrameError::Length(l)) if l == length));
        }
        assert!(matches!(received(&[]), Ok(None)));
        assert!(matches!(received(&[0, 0]), Err(FrameError::Io(_))));
        assert!(matches!(received(&[0, 0, 0, 9, b'{']), Err(FrameError::Io(_))));
        assert!(matches!(received(&[0, 0, 0, 2, b'{', b'}']), Err(FrameError::Json(_))));
    }

    #[test]
    fn a_frame_that_stays_half_is_given_up() {
        let (here, there) = UnixStream::pair().unwrap();
        (&there).write_all(&[0, 0, 0, 9, b'{']).unwrap();
        let error = read::<RequestFrame>(&here, QUICK).unwrap_err();
        let FrameError::Io(error) = error else { panic!("{error}") };
        assert!(matches!(error.kind(), io::ErrorKind::TimedOut | io::ErrorKind::WouldBlock), "{error}");
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]

        #[test]
        fn requests_round_trip(id in any::<u64>(), epoch in any::<u64>(), seed in any::<[u8; 32]>(), name in "[a-z]{1,63}") {
            let request = Request::Open {
                fleet: FleetName::new(&name).unwrap(),
                epoch: Epoch(epoch),
                digest: Digest::from_bytes(seed),
            };
            let request = serde_json::to_value(request).unwrap();
            let frame = RequestFrame { protocol: PROTOCOL, id, request };
            let (here, there) = UnixStream::pair().unwrap();
            write(&there, &frame).unwrap();
            prop_assert_eq!(read::<RequestFrame>(&here, QUICK).unwrap(), Some(frame));
        }

        #[test]
        fn any_bytes_give_an_answer(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            prop_assert!(!matches!(received(&bytes), Ok(Some(_))));
        }
    }
}
