//! Files that nodes read: secrets, keys, certificates; in a folder of the test's own.

use std::fs::{self, OpenOptions, Permissions};
use std::io::Write;
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt, chown, symlink};
use std::path::PathBuf;
use std::sync::atomic::{AtomicU32, Ordering};

use crate::process::{Ended, PATIENCE, poll, run};

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

/// Nobody in particular, and not whoever runs the tests.
const OTHER: u32 = 65_534;

/// Starts a node that finds a fault with its files before it needs a port.
fn start(flag: &str, file: &str, cluster_secret: &str) -> Ended {
    let mut flags = vec!["node", "--listen", "127.0.0.1:0", flag, file];
    if flag == "--api-keys-file" {
        flags.extend(["--cluster-secret-file", cluster_secret]);
    }
    run(&flags)
}

#[test]
fn a_secret_that_another_user_has_or_could_replace_is_refused_with_a_remedy() {
    if !rustix::process::geteuid().is_root() {
        return eprintln!("only root can give files away: not shown here");
    }
    let folder = Folder::new();
    let cluster_secret = folder.write("cluster-secret", &secret());
    fs::create_dir_all(folder.path("open/inner")).expect("folders");
    fs::create_dir_all(folder.path("away/inner")).expect("folders");
    let refused = |file: &str, words: &[&str]| {
        for flag in ["--cluster-secret-file", "--admin-token-file", "--api-keys-file"] {
            let ended = start(flag, file, &cluster_secret);
            let named = words.iter().all(|word| ended.errors.contains(word));
            assert!(ended.code == 2 && named, "{flag} {file}: {}", ended.errors);
        }
    };
    // Its owner.
    let owned = folder.write("owned", &secret());
    chown(&owned, Some(OTHER), Some(OTHER)).expect("it is given away");
    refused(&owned, &["owned belongs to user 65534", "chown 0 "]);
    // A folder that others may write to: the next one, one further up, and by a group that is not the node's.
    chown(folder.path("open"), None, Some(OTHER)).expect("it is given away");
    for mode in [0o777, 0o775, 0o757] {
        folder.set_mode("open", mode);
        for name in ["open/secret", "open/inner/secret"] {
            let file = folder.write(name, &secret());
            refused(&file, &["open is on the way to ", &format!("permissions {mode:o}"), "chmod go-w "]);
        }
    }
    // One of somebody else.
    let away = folder.write("away/inner/secret", &secret());
    chown(folder.path("away"), Some(OTHER), Some(OTHER)).expect("it is given away");
    refused(&away, &["away belongs to user 65534"]);
    // By a link, where the link is and where it leads.
    let safe = folder.write("safe", &secret());
    symlink(&safe, folder.path("open/link")).expect("a link");
    symlink(folder.path("open/secret"), folder.path("to-open")).expect("a link");
    symlink("open/inner", folder.path("to-inner")).expect("a link");
    for name in ["open/link", "to-open", "to-inner/secret", "to-inner/../../safe"] {
        refused(folder.path(name).to_str().expect("a path"), &["open is on the way to "]);
    }
    // Only its owner can take something out of a sticky folder; a link there has an owner, too.
    folder.set_mode("open", 0o1777);
    let lent = folder.path("open/lent");
    symlink(&safe, &lent).expect("a link");
    std::os::unix::fs::lchown(&lent, Some(OTHER), Some(OTHER)).expect("it is given away");
    refused(lent.to_str().expect("a path"), &["lent belongs to user 65534"]);
}

#[test]
fn secrets_as_orchestrators_mount_them_are_taken() {
    let folder = Folder::new();
    let (text, own) = (secret(), folder.write("own", &secret()));
    // As Kubernetes does: a sticky folder, and a link to a link to the version of the day.
    fs::create_dir_all(folder.path("mount/..2026_11_25")).expect("folders");
    folder.write("mount/..2026_11_25/secret", &text);
    folder.set_mode("mount", 0o3777);
    symlink("..2026_11_25", folder.path("mount/..data")).expect("a link");
    symlink("..data/secret", folder.path("mount/secret")).expect("a link");
    let mounted = folder.path("mount/secret").to_str().expect("a path").to_string();
    for file in [&mounted, &own] {
        let node = crate::node::Node::start("n1", &["--cluster-secret-file", file]);
        assert!(poll(PATIENCE, || node.is_healthy()), "{}", node.log().tail(8));
    }
}

/// What one orchestrator mounts: who has the file, its permissions, and whether the mount is read-only.
struct Mounted {
    file: &'static str,
    group: u32,
    mode: u32,
    is_read_only: bool,
}

/// A group of the node that is not its main one, as `fsGroup` is.
const POD_GROUP: u32 = 2_000;

#[test]
fn secrets_are_taken_by_who_can_write_them_and_by_how_they_are_mounted() {
    let name = "files::secrets_are_taken_by_who_can_write_them_and_by_how_they_are_mounted";
    if !rustix::process::geteuid().is_root() {
        return eprintln!("only root can mount and become somebody else: not shown here");
    }
    if !crate::namespace::is_inside_of(
        name,
        &["--mount"],
        "mount -t tmpfs -o mode=755 tmpfs /mnt && exec \"$@\"",
    ) {
        return;
    }
    // Where another user reaches it.
    fs::copy(env!("CARGO_BIN_EXE_shoal"), "/mnt/shoal").expect("the binary can be copied");
    let of_docker = Mounted { file: "secret", group: 0, mode: 0o444, is_read_only: true };
    let of_kubernetes = Mounted { file: "..data/secret", group: POD_GROUP, mode: 0o440, is_read_only: true };
    for (mounted, complaint) in [
        (&of_docker, None),
        (&of_kubernetes, None),
        (&Mounted { mode: 0o640, is_read_only: false, ..of_kubernetes }, None),
        (&Mounted { is_read_only: false, ..of_docker }, Some("chown 65534 ")),
        (&Mounted { mode: 0o444, is_read_only: false, ..of_kubernetes }, Some("chmod 640 ")),
        (&Mounted { mode: 0o666, ..of_docker }, Some("may change it")),
        (&Mounted { mode: 0o464, ..of_docker }, None),
        (&Mounted { group: 3_000, mode: 0o464, ..of_docker }, Some("may change it")),
    ] {
        let ended = start_as_pod(mounted);
        let is_right = match complaint {
            None => ended.code == 0,
            Some(said) => ended.code == 2 && ended.errors.contains(said),
        };
        assert!(is_right, "{:o} {complaint:?}: {}", mounted.mode, ended.errors);
    }
}

/// Has another user, who is in the pod's group, use a secret that is mounted so.
fn start_as_pod(mounted: &Mounted) -> Ended {
    let at = PathBuf::from("/mnt/secrets");
    fs::create_dir_all(&at).expect("a folder");
    let mount = |arguments: &[&str]| {
        let done = std::process::Command::new("mount").args(arguments).arg(&at).status();
        assert!(done.expect("mount runs (Debian's mount)").success(), "{arguments:?}");
    };
    mount(&["-t", "tmpfs", "-o", "mode=3777", "tmpfs"]);
    fs::create_dir_all(at.join("..2026_11_25")).expect("a folder");
    symlink("..2026_11_25", at.join("..data")).expect("a link");
    let file = at.join(mounted.file);
    fs::write(&file, secret()).expect("it is written");
    chown(&file, None, Some(mounted.group)).expect("it is given to the group");
    fs::set_permissions(&file, Permissions::from_mode(mounted.mode)).expect("its mode can be set");
    if mounted.is_read_only {
        mount(&["-o", "remount,ro"]);
    }
    let [user, group] = [OTHER, POD_GROUP].map(|id| id.to_string());
    let output = std::process::Command::new("setpriv")
        .args([
            "--reuid",
            &user,
            "--regid",
            &user,
            "--groups",
            &group,
            "--",
            "/mnt/shoal",
            "proof",
            "--to",
            "n1",
        ])
        .args(["GET", "/internal/cluster/health", "--cluster-secret-file"])
        .arg(&file)
        .output()
        .expect("setpriv runs (Debian's util-linux)");
    let done = std::process::Command::new("umount").arg(&at).status();
    assert!(done.expect("umount runs").success());
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    let code = output.status.code().unwrap_or(-1);
    Ended { code, output: text(&output.stdout), errors: text(&output.stderr) }
}

#[test]
fn what_belongs_to_root_or_to_the_nodes_own_user_is_taken() {
    if !rustix::process::geteuid().is_root() {
        return eprintln!("only root can become somebody else: not shown here");
    }
    let folder = Folder::new();
    let file = folder.write("secret", &secret());
    let own = folder.write("own", &secret());
    chown(&own, Some(OTHER), Some(OTHER)).expect("it is given away");
    // Of another user, root's folders and its own file are as good.
    let proof = |file: &str| {
        let id = OTHER.to_string();
        let shoal = env!("CARGO_BIN_EXE_shoal");
        let ended = std::process::Command::new("setpriv")
            .args(["--reuid", &id, "--regid", &id, "--clear-groups", "--", shoal, "proof", "--to", "n1"])
            .args(["GET", "/internal/cluster/health", "--cluster-secret-file", file])
            .output();
        ended.ok().map(|output| (output.status.code(), String::from_utf8_lossy(&output.stderr).into_owned()))
    };
    let Some((code, errors)) = proof(&own) else {
        return eprintln!("there is no setpriv: not shown here");
    };
    if errors.contains("failed to execute") {
        return eprintln!("another user cannot reach the binary: not shown here");
    }
    assert_eq!(code, Some(0), "{errors}");
    let (code, errors) = proof(&file).expect("it ran before");
    assert!(code == Some(2) && errors.contains("cannot be read"), "{errors}");
}
