//! What operators write as a function of bytes; see [`crate::fuzzing`].

use super::units::{check_host_port, count, duration, size};
use crate::security::{ApiKeys, Keyring};

/// Values of flags, and the files of secrets and keys.
pub(crate) fn config(bytes: &[u8]) {
    let text = String::from_utf8_lossy(bytes);
    for line in text.lines() {
        let _ = size("flag", line);
        let _ = check_host_port("flag", line);
        let range = [std::time::Duration::ZERO, std::time::Duration::MAX];
        let _ = duration("flag", line, range);
        if let Ok(number) = count("flag", line, 5..=500) {
            assert!((5..=500).contains(&number));
        }
    }
    if let Ok(keyring) = Keyring::parse(&text) {
        assert!(keyring.ids().count() > 0);
    }
    if let Ok(keys) = ApiKeys::parse(&text) {
        for line in text.lines() {
            assert!(keys.grant(line).is_none(), "a line of the file is no key");
        }
    }
}

/// What is worth changing a little.
pub(crate) fn corpus() -> Vec<Vec<u8>> {
    use rand::SeedableRng;
    let mut random = rand::rngs::StdRng::seed_from_u64(3);
    let secret = crate::security::Secret::generate(&mut random).to_text();
    let grant =
        crate::security::Grant { name: "web".into(), read: true, write: true, prefix: "page/".into() };
    let (_, line) = grant.issue(&mut random).expect("a name");
    let values = "256MiB\n18446744073709551615GiB\n500ms\n1h\n[::1]:8001\n127.0.0.1:8001\nhost:99999\n7\n";
    vec![values.into(), secret.into_bytes(), format!("# clients\n{line}\n").into_bytes()]
}
