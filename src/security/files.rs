//! Reading what is secret from where it is kept, if nobody else could have put it there.
//!
//! Who may write a file, own it, or rename what is on the way to it chooses the secret; the checks are those of sshd's
//! `StrictModes` (`safe_path` in OpenSSH's misc.c), and sticky folders besides. Invariant: an error names the file or folder and
//! what is wrong with it, and repeats nothing of what the file holds.

use std::ffi::OsString;
use std::fs::{File, Metadata};
use std::io::{self, Read};
use std::os::unix::fs::MetadataExt;
use std::path::{self, Component, Path, PathBuf};

/// The longest file that is taken for a secret.
const BYTES_MAX: u64 = 1 << 20;
/// Permissions of anybody but the owner.
const OTHERS: u32 = 0o077;
/// Permission of others to write.
const OTHERS_WRITE: u32 = 0o022;
/// In a folder: only the owner of what is in it may rename or remove that.
const STICKY: u32 = 0o1000;
/// As many as Linux follows.
const LINKS_MAX: usize = 40;
/// What is a link in here is an open file of the process, such as a pipe; it has no folder.
const OPEN_FILES: &str = "/proc";

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
    /// Somebody else has it, and so chooses what is in it.
    #[error("{path} belongs to user {owner}; it must belong to the user of this process, {user}, or to root: chown {user} {path}", path = .path.display())]
    Owner {
        /// The file, or a folder on the way to it.
        path: PathBuf,
        /// Whose it is.
        owner: u32,
        /// Whose it should be.
        user: u32,
    },
    /// Others could put another file in its place.
    #[error("{folder} is on the way to {path} and has permissions {mode:03o}; nobody but its owner may write to it: chmod go-w {folder}", folder = .folder.display(), path = .path.display())]
    Folder {
        /// Which folder.
        folder: PathBuf,
        /// The file that was wanted.
        path: PathBuf,
        /// The folder's permissions.
        mode: u32,
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
    let user = rustix::process::geteuid().as_raw();
    check_way(path, user)?;
    let file = File::open(path).map_err(unreadable)?;
    // Of the open file, not of its name, which may be another file by now.
    let metadata = file.metadata().map_err(unreadable)?;
    check_owner(path, &metadata, user)?;
    let mode = metadata.mode() & 0o777;
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

fn check_owner(path: &Path, metadata: &Metadata, user: u32) -> Result<(), FileError> {
    let owner = metadata.uid();
    if owner == 0 || owner == user {
        return Ok(());
    }
    Err(FileError::Owner { path: path.into(), owner, user })
}

/// Checks every folder on the way to a file, also on the way that links lead.
fn check_way(path: &Path, user: u32) -> Result<(), FileError> {
    let unreadable = |source| FileError::Unreadable { path: path.into(), source };
    let whole = path::absolute(path).map_err(unreadable)?;
    let mut ahead = steps(&whole);
    let (mut at, mut links) = (PathBuf::from("/"), 0);
    while let Some(step) = ahead.pop() {
        let folder = at.symlink_metadata().map_err(unreadable)?;
        check_owner(&at, &folder, user)?;
        let mode = folder.mode() & 0o7777;
        if mode & OTHERS_WRITE != 0 && mode & STICKY == 0 {
            return Err(FileError::Folder { folder: at, path: path.into(), mode });
        }
        if step == ".." {
            at.pop();
            continue;
        }
        let next = at.join(&step);
        let metadata = next.symlink_metadata().map_err(unreadable)?;
        if !metadata.is_symlink() {
            at = next;
            continue;
        }
        if at.starts_with(OPEN_FILES) {
            return Ok(());
        }
        // In a sticky folder it is whose link it is that counts.
        check_owner(&next, &metadata, user)?;
        links += 1;
        if links > LINKS_MAX {
            return Err(unreadable(io::Error::other("too many links")));
        }
        let target = next.read_link().map_err(unreadable)?;
        if target.is_absolute() {
            at = PathBuf::from("/");
        }
        ahead.extend(steps(&target));
    }
    Ok(())
}

/// The names in a path, the first one last.
fn steps(path: &Path) -> Vec<OsString> {
    let names = path.components().filter(|step| matches!(step, Component::Normal(_) | Component::ParentDir));
    names.map(|step| step.as_os_str().to_owned()).rev().collect()
}
