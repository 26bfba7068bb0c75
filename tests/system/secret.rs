//! A cluster that has a secret, and those who do not have it: they get nowhere with what they guess or overhear.

use std::io::Write;
use std::thread::sleep;
use std::time::Duration;

use serde_json::json;

use crate::cluster::Cluster;
use crate::files::{Folder, secret};
use crate::http;
use crate::node::Node;
use crate::process::{PATIENCE, Process, Signal, run};

/// A cluster whose nodes have the secret of this file.
fn sealed(nodes: usize, file: &str) -> Cluster {
    Cluster::start_with(nodes, &["--cluster-secret-file", file])
}

/// The header that `shoal proof` makes for a call of the first node.
fn proof(arguments: &[&str]) -> (String, String) {
    proof_to("n1", arguments)
}

fn proof_to(node: &str, arguments: &[&str]) -> (String, String) {
    let ended = run(&[&["proof", "--to", node], arguments].concat());
    assert_eq!(ended.code, 0, "{}", ended.errors);
    let (name, value) = ended.output.trim().split_once(": ").expect("a header");
    (name.into(), value.into())
}

#[test]
fn a_node_that_others_could_reach_starts_only_with_a_secret_or_when_told_that_all_is_well() {
    let folder = Folder::new();
    let file = folder.write("secret", &secret());
    let flags = ["node", "--listen", "0.0.0.0:0", "--advertise", "127.0.0.1:9"];
    let refused = run(&flags);
    assert_eq!(refused.code, 2);
    for word in ["--listen", "--cluster-secret-file", "--insecure", "shoal secret"] {
        assert!(refused.errors.contains(word), "{}", refused.errors);
    }
    for way_out in [&["--cluster-secret-file", &file][..], &["--insecure"]] {
        let process = Process::spawn([&flags, way_out, &["--log-format", "json"]].concat());
        let started = crate::process::poll(PATIENCE, || process.log().address().is_some());
        assert!(started, "{}", process.log().tail(20));
    }
}

#[test]
fn a_secret_that_others_can_read_or_that_is_none_is_refused_and_not_repeated() {
    let folder = Folder::new();
    let text = secret();
    let file = folder.write("secret", &text);
    for mode in [0o644, 0o604, 0o602, 0o666] {
        folder.set_mode("secret", mode);
        let ended = run(&["node", "--listen", "127.0.0.1:0", "--cluster-secret-file", &file]);
        assert_eq!(ended.code, 2, "{mode:o}");
        assert!(ended.errors.contains("chmod 600") && ended.errors.contains(&file), "{}", ended.errors);
    }
    for (wrong, said) in
        [("hunter2hunter2hunter2", "line 1 is not a secret"), ("", "there is no secret in it")]
    {
        let file = folder.write("wrong", wrong);
        let ended = run(&["node", "--listen", "127.0.0.1:0", "--cluster-secret-file", &file]);
        assert_eq!(ended.code, 2);
        assert!(ended.errors.contains(said) && !ended.errors.contains("hunter2"), "{}", ended.errors);
    }
    let ended = run(&["node", "--cluster-secret-file", "/nowhere/secret"]);
    assert!(ended.code == 2 && ended.errors.contains("/nowhere/secret cannot be read"), "{}", ended.errors);
    assert_eq!(run(&["node", "--cluster-secret", &text]).code, 2, "there is no flag for the secret itself");
    let ended = run(&["node", "--cluster-secret-file", &text]);
    assert!(ended.code == 2 && ended.errors.contains("path of a file"), "{}", ended.errors);
    assert!(!ended.errors.contains(&text[20..]), "it is not repeated: {}", ended.errors);
}

#[test]
fn a_secret_comes_from_a_variable_or_the_service_manager_too() {
    let folder = Folder::new();
    let text = secret();
    let file = folder.write("shoal-cluster-secret", &text);
    // As the service manager has it; it lets in whom it likes.
    folder.set_mode("shoal-cluster-secret", 0o440);
    let credentials = folder.path("").display().to_string();
    // There is something by the name of the credential, and it is of no use.
    std::fs::create_dir_all(folder.path("wrong/shoal-cluster-secret")).expect("a folder");
    let not_one = folder.path("wrong").display().to_string();
    let arguments = ["node", "--listen", "127.0.0.1:0", "--log-format", "json", "--id", "n1"];
    for variable in [("SHOAL_CLUSTER_SECRET", &text), ("CREDENTIALS_DIRECTORY", &credentials)] {
        let process = Process::spawn_with(&[(variable.0, variable.1)], arguments);
        assert!(
            crate::process::poll(PATIENCE, || process.log().address().is_some()),
            "{}",
            process.log().tail(3)
        );
        let address = process.log().address().expect("it listens");
        let answer = http::request(address, "GET", "/internal/cluster/health", &[], b"").expect("an answer");
        answer.expect_error(401, "unauthorized");
    }
    for (variables, said) in [
        (
            vec![("SHOAL_CLUSTER_SECRET", "hunter2hunter2hunter2")],
            "SHOAL_CLUSTER_SECRET: line 1 is not a secret",
        ),
        // A variable that somebody forgot to fill is no reason to do without.
        (vec![("SHOAL_CLUSTER_SECRET", "")], "SHOAL_CLUSTER_SECRET: there is no secret in it"),
        (vec![("SHOAL_CLUSTER_SECRET", &*text), ("SHOAL_CLUSTER_SECRET_FILE", &*file)], "in one of them"),
        (vec![("CREDENTIALS_DIRECTORY", &*not_one)], "cannot be read"),
    ] {
        let mut process = Process::spawn_with(&variables, arguments);
        assert_eq!(process.wait(PATIENCE).code(), Some(2));
        let errors = process.log().text();
        assert!(errors.contains(said) && !errors.contains("hunter2") && !errors.contains(&text), "{errors}");
    }
}

#[test]
fn a_sealed_cluster_works_and_shows_its_secret_nowhere() {
    let folder = Folder::new();
    let text = secret();
    let mut cluster = sealed(3, &folder.write("secret", &text));
    cluster[1].put("key", "value");
    assert!((1..=3).all(|number| cluster[number].value("key").as_deref() == Some("value")));
    cluster.kill(3);
    cluster.wait_until("the death is known", PATIENCE, || {
        cluster.agrees_on(&[("n1", "healthy"), ("n2", "healthy"), ("n3", "unhealthy")])
    });
    cluster.restart(3);
    cluster.wait_until("it is back", PATIENCE, || cluster.is_whole());
    assert_eq!(cluster[3].value("key").as_deref(), Some("value"));
    cluster.node(1).process().signal(Signal::HUP);
    cluster.wait_until("it was read again", PATIENCE, || cluster[1].log().text().contains("were read again"));
    let secret = text.strip_prefix("shoal-secret-").expect("how it begins");
    for number in 1..=3 {
        for path in ["/admin/cluster", "/admin/nodes", "/admin/metrics", "/metrics", "/api/v1/stats"] {
            assert!(!cluster[number].get(path).text().contains(secret), "{path}");
        }
        assert!(!cluster[number].log().text().contains(secret));
    }
}

#[test]
fn nobody_crosses_over_from_another_secret_name_or_none() {
    let folder = Folder::new();
    let [ours, theirs] = ["ours", "theirs"].map(|name| folder.write(name, &secret()));
    let cluster = sealed(2, &ours);
    let seed = cluster[1].address.to_string();
    let strangers = [
        (vec!["--cluster-secret-file", &*theirs], "does not have the secret"),
        (vec!["--cluster-secret-file", &*ours, "--cluster", "other"], "belongs to cluster"),
        (vec![], "this cluster has a secret"),
    ];
    let strangers: Vec<_> = strangers
        .into_iter()
        .enumerate()
        .map(|(index, (flags, reason))| {
            let flags = [&["--join", &seed][..], &flags].concat();
            (Node::start(&format!("x{index}"), &flags), reason)
        })
        .collect();
    // From the inside, too: a member asks a stranger, who is asked for nothing he has.
    let body = folder.write("join", &json!({"node_id": "x0", "address": strangers[0].0.address}).to_string());
    let (name, value) =
        proof(&["POST", "/internal/cluster/join", "--body", &body, "--cluster-secret-file", &ours]);
    let text = std::fs::read(&body).expect("the body");
    let greeted = cluster[1].request("POST", "/internal/cluster/join", &[(&name, &value)], &text);
    greeted.expect_error(500, "add_node_error");
    // A duration: so long nobody may cross over.
    for _ in 0..60 {
        sleep(Duration::from_millis(500));
        assert!(cluster.is_whole());
        for (stranger, _) in &strangers {
            let view = stranger.view().expect("a view");
            assert_eq!(view.statuses(), [(&*stranger.id, "healthy")], "{}", stranger.log().tail(5));
        }
    }
    for (stranger, reason) in &strangers {
        assert!(stranger.log().says(reason), "{reason}: {}", stranger.log().tail(9));
    }
    // The other side says it, too, once for each kind.
    let refused =
        cluster[1].log().with_message("refused a link; more like this are counted, not logged, for a minute");
    let reasons: Vec<_> = refused.iter().filter_map(|line| line["reason"].as_str()).collect();
    for (_, reason) in &strangers {
        assert_eq!(reasons.iter().filter(|said| said.contains(reason)).count(), 1, "{reason}: {reasons:?}");
    }
}

#[test]
fn a_call_of_internal_takes_a_proof_that_is_good_for_it_alone() {
    let folder = Folder::new();
    let [ours, theirs] = ["ours", "theirs"].map(|name| folder.write(name, &secret()));
    let cluster = sealed(1, &ours);
    let path = "/internal/cache/key";
    let put = |headers: &[(&str, &str)], body: &[u8]| cluster[1].request("PUT", path, headers, body);
    let message = put(&[], b"value").expect_error(401, "unauthorized");
    assert!(message.contains("shoal proof"), "{message}");
    put(&[("shoal-proof", "v1 x")], b"value").expect_error(401, "unauthorized");
    let body = folder.write("body", "value");
    let prove = |method: &str, target: &str, file: &str| {
        proof(&[method, target, "--body", &body, "--cluster-secret-file", file]).1
    };
    let wrong = [
        prove("PUT", path, &theirs),
        prove("GET", path, &ours),
        prove("PUT", "/internal/cache/other", &ours),
        prove("PUT", "/internal/cache/key?ttl=1", &ours),
        proof(&["PUT", path, "--body", &body, "--cluster-secret-file", &ours, "--cluster", "other"]).1,
        proof(&["PUT", path, "--cluster-secret-file", &ours]).1,
        proof_to("n2", &["PUT", path, "--body", &body, "--cluster-secret-file", &ours]).1,
    ];
    for value in wrong {
        put(&[("shoal-proof", &value)], b"value").expect_error(401, "unauthorized");
    }
    let good = prove("PUT", path, &ours);
    put(&[("shoal-proof", &good)], b"other").expect_error(401, "unauthorized");
    assert_eq!(cluster[1].value("key"), None);
    // It was used up by the attempt with another body.
    put(&[("shoal-proof", &good)], b"value").expect_error(401, "unauthorized");
    let good = prove("PUT", path, &ours);
    assert_eq!(put(&[("shoal-proof", &good)], b"value").status, 204);
    assert!(put(&[("shoal-proof", &good)], b"value").expect_error(401, "unauthorized").contains("replay"));
    for (method, path) in [
        ("GET", "/internal/cache/key"),
        ("HEAD", "/internal/cache/key"),
        ("DELETE", "/internal/cache/key"),
        ("GET", "/internal/cluster/health"),
        ("POST", "/internal/cluster/leave"),
        ("POST", "/internal/cluster/join"),
        ("GET", "/internal/nothing"),
        ("OPTIONS", "/internal/cache/key"),
    ] {
        let answer = cluster[1].request(method, path, &[], b"");
        assert_eq!(answer.status, 401, "{method} {path}");
    }
    assert_eq!(cluster[1].get("/api/v1/health").status, 200);
}

#[test]
fn a_link_without_proof_is_refused_or_closed_before_anything_of_it_is_read() {
    let folder = Folder::new();
    let file = folder.write("secret", &secret());
    let cluster = sealed(2, &file);
    let upgrade = |fields: &str| {
        format!(
            "GET /internal/link HTTP/1.1\r\nhost: localhost\r\nconnection: upgrade\r\nupgrade: shoal-link/3\r\n\
             shoal-cluster: shoal\r\n{fields}\r\n"
        )
    };
    let refused = http::exchange(cluster[1].address, upgrade("").as_bytes()).expect("an answer");
    refused.expect_error(401, "unauthorized");
    let unknown =
        upgrade("shoal-key: 00000000\r\nshoal-nonce: AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA\r\n");
    let refused = http::exchange(cluster[1].address, unknown.as_bytes()).expect("an answer");
    refused.expect_error(401, "unauthorized");
    let names = "shoal-from: 127.0.0.1:9 x1 0000000000000007\r\nshoal-to: 127.0.0.1:8\r\n";
    // The name of the secret is no secret: a refused proof tells it to nobody, but assume that it is known.
    let (_, header) = proof(&["GET", "/", "--cluster-secret-file", &file]);
    let key = header.split(' ').nth(1).expect("the key's id");
    let known = upgrade(&format!(
        "shoal-key: {key}\r\nshoal-nonce: AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA\r\n{names}"
    ));
    // A whole frame behind a guessed proof: closed, and not answered.
    let frame = [&[0; 32][..], &[1, 0, 0, 0, 1, 0, 0, 0, 0, 4, 0, 0, 1, 0, 0, 0, 7]].concat();
    for behind in [&frame[..], &[][..]] {
        let mut stream = http::connect(cluster[1].address).expect("a connection");
        stream.write_all(&[known.as_bytes(), behind].concat()).expect("it is sent");
        let mut answer = Vec::new();
        let _ = std::io::Read::read_to_end(&mut stream, &mut answer);
        let answer = String::from_utf8_lossy(&answer).into_owned();
        // Who sends ahead of the answer may not even get that.
        let is_bare = answer.starts_with("HTTP/1.1 101 ") && answer.ends_with("\r\n\r\n");
        assert!(is_bare || answer.is_empty() && !behind.is_empty(), "{answer:?}");
    }
    cluster[1].put("key", "value");
    assert_eq!(cluster[2].value("key").as_deref(), Some("value"));
}
