//! Whether a service works, before its opening counts as done.

use std::io::{self, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::thread;
use std::time::{Duration, Instant};

use crate::config::{HealthCheck, HealthConfig, HttpCheck};
use crate::hooks::{Context, Hook, Hooks};

/// The head of an answer is smaller than this, or the answer is no good.
const HEAD_BYTES_MAX: usize = 16 * 1024;
const HEADERS_MAX: usize = 64;

/// How soon a check that is not wanted any more ends.
const TICK: Duration = Duration::from_millis(20);

/// Tries until an attempt succeeds; answers why the last one failed. `wanted` is asked between attempts and while waiting.
pub(crate) fn await_health(
    config: &HealthConfig,
    hooks: &Hooks,
    context: &Context,
    wanted: &dyn Fn() -> bool,
) -> Result<(), String> {
    let timeout = Duration::from_millis(config.timeout_ms);
    let mut last = "it was cut short".to_owned();
    for attempt in 0..=config.retries {
        if attempt > 0 && !pause(Duration::from_millis(config.interval_ms), wanted) {
            break;
        }
        if !wanted() {
            break;
        }
        let tried = match &config.check {
            HealthCheck::Command(command) => hooks
                .run_command(Hook::Health, command, context, timeout, wanted)
                .map_err(|error| error.to_string()),
            HealthCheck::Tcp(address) => connect(*address, timeout).map(drop),
            HealthCheck::Http(check) => get(check, timeout),
        };
        match tried {
            Ok(()) => return Ok(()),
            Err(error) => last = error,
        }
    }
    Err(last)
}

/// `false`: cut short.
fn pause(duration: Duration, wanted: &dyn Fn() -> bool) -> bool {
    let deadline = Instant::now() + duration;
    loop {
        let left = deadline.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return true;
        }
        if !wanted() {
            return false;
        }
        thread::sleep(left.min(TICK));
    }
}

fn connect(address: SocketAddr, timeout: Duration) -> Result<TcpStream, String> {
    TcpStream::connect_timeout(&address, timeout).map_err(|e| format!("cannot connect to {address}: {e}"))
}

fn get(check: &HttpCheck, timeout: Duration) -> Result<(), String> {
    let deadline = Instant::now() + timeout;
    let HttpCheck { address, path } = check;
    let stream = connect(*address, timeout)?;
    match status(&stream, check, deadline) {
        Ok(200..=299) => Ok(()),
        Ok(other) => Err(format!("GET http://{address}{path} is answered with status {other}")),
        Err(error) => Err(format!("GET http://{address}{path}: {error}")),
    }
}

/// Reads no further than the head of the answer.
fn status(mut stream: &TcpStream, check: &HttpCheck, deadline: Instant) -> io::Result<u16> {
    let left = || {
        let left = deadline.saturating_duration_since(Instant::now());
        if left.is_zero() { Err(io::Error::from(io::ErrorKind::TimedOut)) } else { Ok(left) }
    };
    stream.set_write_timeout(Some(left()?))?;
    let HttpCheck { address, path } = check;
    write!(
        stream,
        "GET {path} HTTP/1.1\r\nHost: {address}\r\nUser-Agent: muster-guard\r\nConnection: close\r\n\r\n"
    )?;
    let mut head = Vec::new();
    let mut buffer = [0; 1024];
    while head.len() < HEAD_BYTES_MAX {
        stream.set_read_timeout(Some(left()?))?;
        let read = stream.read(&mut buffer)?;
        if read == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        head.extend_from_slice(&buffer[..read]);
        let mut headers = [httparse::EMPTY_HEADER; HEADERS_MAX];
        let mut response = httparse::Response::new(&mut headers);
        let parsed = response.parse(&head).map_err(io::Error::other)?;
        if parsed.is_complete() {
            return response.code.ok_or_else(|| io::Error::other("an answer without a status"));
        }
    }
    Err(io::Error::other("the head of the answer is too long"))
}

#[cfg(test)]
mod tests {
    use std::net::TcpListener;

    use super::*;

    /// Answers one connection with `answer` and says what was asked.
    fn server(answer: &'static str) -> (SocketAddr, thread::JoinHandle<String>) {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let serve = move || {
            let (mut stream, _) = listener.accept().unwrap();
            let mut asked = Vec::new();
            let mut buffer = [0; 256];
            while !asked.ends_with(b"\r\n\r\n") {
                let read = stream.read(&mut buffer).unwrap();
                asked.extend_from_slice(&buffer[..read]);
            }
            stream.write_all(answer.as_bytes()).unwrap();
            String::from_utf8(asked).unwrap()
        };
        (address, thread::spawn(serve))
    }

    fn answered(answer: &'static str, timeout_ms: u64) -> Result<(), String> {
        let (address, serving) = server(answer);
        let got = get(&HttpCheck { address, path: "/ok?x=1".to_owned() }, Duration::from_millis(timeout_ms));
        let asked = serving.join().unwrap();
        assert!(asked.starts_with("GET /ok?x=1 HTTP/1.1\r\nHost: 127.0.0.1:"), "{asked}");
        got
    }

    #[test]
    fn only_a_good_status_is_healthy() {
        assert_eq!(answered("HTTP/1.1 204 No Content\r\n\r\n", 5000), Ok(()));
        for (answer, word) in [
            ("HTTP/1.1 503 No\r\nX: y\r\n\r\nbody", "status 503"),
            ("HTTP/1.1 302 Found\r\nLocation: /\r\n\r\n", "status 302"),
            ("220 smtp ready\r\n", "GET http://127.0.0.1:"),
            ("HTTP/1.1 200 OK\r\nX: ", "unexpected end of file"),
        ] {
            let error = answered(answer, 5000).unwrap_err();
            assert!(error.contains(word), "{answer}: {error}");
        }
    }

    #[test]
    fn a_server_that_takes_the_connection_and_says_nothing_is_given_up() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let check = HttpCheck { address: listener.local_addr().unwrap(), path: "/".to_owned() };
        assert!(get(&check, Duration::from_millis(50)).is_err());
        assert!(connect(check.address, Duration::from_secs(5)).is_ok());
        drop(listener);
        assert!(connect(check.address, Duration::from_secs(5)).is_err());
    }
}
