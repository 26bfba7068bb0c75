//! Files that nodes read: secrets, keys, certificates; in a folder of the test's own.

use std::fs::{self, OpenOptions, Permissions};
use std::io::Write;
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::path::PathBuf;
use std::sync::atomic::{AtomicU32, Ordering};

use crate::process::run;

/// A folder that is gone with its handle.
pub(crate) struct Folder(PathBuf);

impl Folder {
    pub(crate) fn new() -> Folder {
        static FOLDERS: AtomicU32 = AtomicU32::new(0);
        let number = FOLDERS.fetch_add(1, Ordering::Relaxed);
        let path = std::env::temp_dir().join(format!("shoal-system-{}-{number}", std::process::id()));
        fs::create_dir_all(&path).expect("a folder can be made");
        Folder(path)
    }

    /// Writes a file that only its owner can read, at once as a whole, and gives its path.
    pub(crate) fn write(&self, name: &str, text: &str) -> String {
        let (path, draft) = (self.0.join(name), self.0.join(format!("{name}.draft")));
        let file = OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&draft);
        file.and_then(|mut file| file.write_all(text.as_bytes())).expect("a file can be written");
        fs::rename(&draft, &path).expect("a file can be renamed");
        path.to_str().expect("a path of plain characters").to_string()
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.0.join(name)
    }

    pub(crate) fn set_mode(&self, name: &str, mode: u32) {
        fs::set_permissions(self.0.join(name), Permissions::from_mode(mode))
            .expect("a file's mode can be set");
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        // Left behind if that fails, which no test depends on.
        let _ = fs::remove_dir_all(&self.0);
    }
}

/// What `shoal secret` prints.
pub(crate) fn secret() -> String {
    let ended = run(&["secret"]);
    assert_eq!(ended.code, 0, "{}", ended.errors);
    ended.output.trim().to_string()
}
