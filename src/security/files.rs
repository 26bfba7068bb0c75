//! Reading what is secret from where it is kept, if nobody else could have put it there.
//!
//! Who may write a file, own it, or rename what is on the way to it chooses the secret; the checks are those of sshd's
//! `StrictModes` (`safe_path` in OpenSSH's misc.c), but that sticky folders are taken, and that the groups of this process may do
//! what its user may: so Kubernetes gives a pod its secrets (`fsGroup`). What is mounted read-only cannot be mended from inside,
//! and may be readable by all, as Docker mounts secrets. Invariant: an error names the file or folder and what is wrong with it,
//! and repeats nothing of what the file holds.

use std::ffi::OsString;
use std::fs::{File, Metadata};
use std::io::{self, Read};
use std::os::unix::fs::MetadataExt;
use std::path::{self, Component, Path, PathBuf};

/// The longest file that is taken for a secret.
const BYTES_MAX: u64 = 1 << 20;
/// Permissions to read and to write.
const READ: u32 = 0o444;
const WRITE: u32 = 0o222;
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
    /// Others than the user and the groups of this process could have read or changed it.
    #[error("{path} has permissions {mode:03o}; only root and the user and groups of this process may {verb} it: {remedy}", path = .path.display())]
    Open {
        /// Which one.
        path: PathBuf,
        /// Its permissions.
        mode: u32,
        /// What others may do and must not.
        verb: &'static str,
        /// The command that mends it.
        remedy: String,
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
    #[error("{folder} is on the way to {path} and has permissions {mode:03o}; only root and the user and groups of this process may write to it: chmod go-w {folder}", folder = .folder.display(), path = .path.display())]
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
    /// Only root, and the user and groups of this process.
    Private,
    /// Everybody may read it.
    Public,
    /// Whoever the service manager let in.
    Guarded,
}

/// As whom this process may do things.
struct User {
    id: u32,
    groups: Vec<u32>,
}

impl User {
    fn of_this_process() -> User {
        // Fails for want of memory; then the main group is all.
        let further = rustix::process::getgroups().unwrap_or_default();
        let groups = further.into_iter().chain([rustix::process::getegid()]);
        User {
            id: rustix::process::geteuid().as_raw(),
            groups: groups.map(rustix::process::Gid::as_raw).collect(),
        }
    }

    fn is_in_group_of(&self, metadata: &Metadata) -> bool {
        self.groups.contains(&metadata.gid())
    }

    /// The permissions of those that are neither root nor this user and its groups.
    fn others(&self, metadata: &Metadata) -> u32 {
        let is_own = metadata.gid() == 0 || self.is_in_group_of(metadata);
        metadata.mode() & if is_own { 0o007 } else { 0o077 }
    }

    /// Takes a file from others, and leaves it to this user.
    fn remedy(&self, path: &Path, metadata: &Metadata) -> String {
        let path = path.display();
        if metadata.uid() == self.id {
            format!("chmod 600 {path}")
        } else if self.is_in_group_of(metadata) {
            format!("chmod 640 {path}")
        } else {
            format!("chown {user} {path} && chmod 600 {path}", user = self.id)
        }
    }
}

/// The whole file as text.
pub(super) fn read(path: &Path, access: Access) -> Result<String, FileError> {
    let unreadable = |source| FileError::Unreadable { path: path.into(), source };
    let user = User::of_this_process();
    check_way(path, &user)?;
    let file = File::open(path).map_err(unreadable)?;
    // Of the open file, not of its name, which may be another file by now.
    let metadata = file.metadata().map_err(unreadable)?;
    check_owner(path, &metadata, &user)?;
    let (mode, others) = (metadata.mode() & 0o777, user.others(&metadata));
    let open = |verb, remedy| FileError::Open { path: path.into(), mode, verb, remedy };
    match access {
        Access::Public if others & WRITE != 0 => {
            return Err(open("change", format!("chmod 644 {}", path.display())));
        }
        Access::Private if others & WRITE != 0 => return Err(open("change", user.remedy(path, &metadata))),
        Access::Private if others & READ != 0 && !is_mounted_read_only(&file) => {
            return Err(open("read", user.remedy(path, &metadata)));
        }
        _ => {}
    }
    let mut text = String::new();
    file.take(BYTES_MAX + 1).read_to_string(&mut text).map_err(unreadable)?;
    if text.len() as u64 > BYTES_MAX {
        return Err(FileError::contents(path, format!("longer than {BYTES_MAX} bytes")));
    }
    Ok(text)
}

/// Whoever mounted it so decided who reads it, and nobody here can change that.
fn is_mounted_read_only(file: &File) -> bool {
    let system = rustix::fs::fstatvfs(file);
    system.is_ok_and(|system| system.f_flag.contains(rustix::fs::StatVfsMountFlags::RDONLY))
}

fn check_owner(path: &Path, metadata: &Metadata, user: &User) -> Result<(), FileError> {
    let owner = metadata.uid();
    if owner == 0 || owner == user.id {
        return Ok(());
    }
    Err(FileError::Owner { path: path.into(), owner, user: user.id })
}

/// Checks every folder on the way to a file, also on the way that links lead.
fn check_way(path: &Path, user: &User) -> Result<(), FileError> {
    let unreadable = |source| FileError::Unreadable { path: path.into(), source };
    let whole = path::absolute(path).map_err(unreadable)?;
    let mut ahead = steps(&whole);
    let (mut at, mut links) = (PathBuf::from("/"), 0);
    while let Some(step) = ahead.pop() {
        let folder = at.symlink_metadata().map_err(unreadable)?;
        check_owner(&at, &folder, user)?;
        let mode = folder.mode() & 0o7777;
        if user.others(&folder) & WRITE != 0 && mode & STICKY == 0 {
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
