//! Unix sockets, with paths of any length and connecting in bounded time.

use std::fs::{self, File, Permissions};
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::fs::{FileTypeExt, PermissionsExt};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::time::Duration;

use rustix::net::sockopt::{Timeout, set_socket_timeout};
use rustix::net::{
    AddressFamily, SocketAddrUnix, SocketFlags, SocketType, connect as connect_socket, socket_with,
};

use crate::error::GuardError;
use crate::state_folder::make_private;

/// `sun_path` holds 108 bytes, the closing NUL included.
const SOCKET_PATH_BYTES_MAX: usize = 107;

const PROBE_PATIENCE: Duration = Duration::from_secs(1);

/// Who can reach the socket at all; whoever reaches it is asked who it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Access {
    /// The guard's own user, and root.
    Owner,
    /// Whoever the folder lets in.
    ByPeer,
}

/// Binds `path`. The caller holds the lock of the state folder, so a socket on which nobody listens
/// is left from a guard that is gone; one on which somebody listens belongs to a guard of another state folder.
pub(crate) fn bind(path: &Path, access: Access) -> Result<UnixListener, GuardError> {
    make_private(path.parent().expect("the configuration's paths are absolute and have a name"))?;
    match fs::symlink_metadata(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        Err(error) => return Err(GuardError::io("look at", path)(error)),
        Ok(found) => match connect(path, PROBE_PATIENCE) {
            Err(error)
                if found.file_type().is_socket() && error.kind() == io::ErrorKind::ConnectionRefused =>
            {
                fs::remove_file(path).map_err(GuardError::io("remove", path))?;
            }
            Ok(_) | Err(_) => return Err(GuardError::SocketInUse { path: path.to_owned() }),
        },
    }
    let (short, _folder) = shorten(path).map_err(GuardError::io("open the folder of", path))?;
    let listener = UnixListener::bind(short).map_err(GuardError::io("listen on", path))?;
    let mode = match access {
        Access::Owner => 0o600,
        Access::ByPeer => 0o666,
    };
    fs::set_permissions(path, Permissions::from_mode(mode)).map_err(GuardError::io("protect", path))?;
    listener.set_nonblocking(true).map_err(GuardError::io("listen on", path))?;
    Ok(listener)
}

/// Connects within `patience`: a guard that hangs with a full backlog would otherwise hold the caller for ever.
pub(crate) fn connect(path: &Path, patience: Duration) -> io::Result<UnixStream> {
    let (short, _folder) = shorten(path)?;
    let socket = socket_with(AddressFamily::UNIX, SocketType::STREAM, SocketFlags::CLOEXEC, None)?;
    set_socket_timeout(&socket, Timeout::Send, Some(patience))?;
    connect_socket(&socket, &SocketAddrUnix::new(&short)?)?;
    Ok(UnixStream::from(socket))
}

/// A name of the same socket that fits. The file must live for as long as the name is used.
fn shorten(path: &Path) -> io::Result<(PathBuf, Option<File>)> {
    match (path.parent(), path.file_name()) {
        (Some(parent), Some(name)) if path.as_os_str().len() > SOCKET_PATH_BYTES_MAX => {
            let folder = File::open(parent)?;
            let short = PathBuf::from(format!("/proc/self/fd/{}", folder.as_raw_fd())).join(name);
            Ok((short, Some(folder)))
        }
        (Some(_) | None, Some(_) | None) => Ok((path.to_owned(), None)),
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::MetadataExt;

    use super::*;

    #[test]
    fn binds_long_paths_and_replaces_only_dead_sockets() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("x".repeat(120)).join("guard.sock");
        let listener = bind(&path, Access::Owner).unwrap();
        assert_eq!(fs::metadata(&path).unwrap().mode() & 0o777, 0o600);
        assert!(connect(&path, PROBE_PATIENCE).is_ok());
        assert!(matches!(bind(&path, Access::Owner), Err(GuardError::SocketInUse { .. })));
        drop(listener);
        drop(bind(&path, Access::Owner).unwrap());
        fs::remove_file(&path).unwrap();
        fs::write(&path, "precious").unwrap();
        assert!(matches!(bind(&path, Access::Owner), Err(GuardError::SocketInUse { .. })));
        assert_eq!(fs::read(&path).unwrap(), b"precious");
    }
}
