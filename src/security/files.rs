//! Reading what is secret from where it is kept.
//!
//! Invariant: an error names the file and what is wrong with it, and repeats nothing of what it holds.

use std::fs::File;
use std::io::{self, Read};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

/// The longest file that is taken for a secret.
const BYTES_MAX: u64 = 1 << 20;
/// Permissions of anybody but the owner.
const OTHERS: u32 = 0o077;
/// Permission of others to write.
const OTHERS_WRITE: u32 = 0o022;

/// Why a file is of no use.
#[derive(Debug, thiserror::Error)]
pub enum FileError {
    /// It cannot be read.
    #[error("{path} cannot be read: {source}", path = .path.display())]
    Unreadable {
        /// Which one.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// Others than its owner could have read or changed it.
    #[error("{path} has permissions {mode:03o}; nobody but its owner may {verb} it: chmod {wanted} {path}", path = .path.display())]
    Open {
        /// Which one.
        path: PathBuf,
        /// Its permissions.
        mode: u32,
        /// What others may do and must not.
        verb: &'static str,
        /// Permissions that would do.
        wanted: &'static str,
    },
    /// Its contents are not what they should be.
    #[error("{path}: {reason}", path = .path.display())]
    Contents {
        /// Which one.
        path: PathBuf,
        /// What is wrong.
        reason: String,
    },
}

impl FileError {
    pub(super) fn contents(path: &Path, reason: impl std::fmt::Display) -> FileError {
        FileError::Contents { path: path.into(), reason: reason.to_string() }
    }
}

/// Who may have access to a file.
#[derive(Clone, Copy)]
pub(super) enum Access {
    /// Its owner alone.
    Owner,
    /// Everybody may read and its owner alone may write it.
    OwnerWrites,
    /// Whoever the service manager let in.
    Guarded,
}

/// The whole file as text.
pub(super) fn read(path: &Path, access: Access) -> Result<String, FileError> {
    let unreadable = |source| FileError::Unreadable { path: path.into(), source };
    let file = File::open(path).map_err(unreadable)?;
    // Of the open file, not of its name, which may be another file by now.
    let mode = file.metadata().map_err(unreadable)?.mode() & 0o777;
    let open = |verb, wanted| FileError::Open { path: path.into(), mode, verb, wanted };
    match access {
        Access::Owner if mode & OTHERS != 0 => return Err(open("read", "600")),
        Access::OwnerWrites if mode & OTHERS_WRITE != 0 => return Err(open("change", "644")),
        _ => {}
    }
    let mut text = String::new();
    file.take(BYTES_MAX + 1).read_to_string(&mut text).map_err(unreadable)?;
    if text.len() as u64 > BYTES_MAX {
        return Err(FileError::contents(path, format!("longer than {BYTES_MAX} bytes")));
    }
    Ok(text)
}
