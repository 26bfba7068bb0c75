//! Keys of clients, and the token of who runs the cluster.

use std::io::{Read, Write};
use std::net::SocketAddr;
use std::time::Instant;

use serde_json::json;

use crate::cluster::Cluster;
use crate::files::{Folder, secret};
use crate::http;
use crate::node::Node;
use crate::process::{PATIENCE, Signal, run};

/// A client's line for the file, and what it has to show.
fn issue(arguments: &[&str]) -> (String, String) {
    let ended = run(&[&["key"], arguments].concat());
    assert_eq!(ended.code, 0, "{}", ended.errors);
    let shown = ended.errors.trim().rsplit(' ').next().expect("a key").to_string();
    (format!("{}\n", ended.output), shown)
}

fn bearer(shown: &str) -> String {
    format!("Bearer {shown}")
}

#[test]
fn a_client_does_what_its_key_grants_and_nothing_else() {
    let folder = Folder::new();
    let (web_line, web) = issue(&["web"]);
    let (report_line, report) = issue(&["report", "--rights", "read", "--prefix", "report/"]);
    let file = folder.write("keys", &format!("# clients\n{web_line}{report_line}"));
    assert!(!web_line.contains(web.rsplit('.').next().expect("its end")), "the file holds no key");
    let cluster_secret = folder.write("secret", &secret());
    let ended = run(&["node", "--listen", "127.0.0.1:0", "--api-keys-file", &file]);
    assert!(ended.code == 2 && ended.errors.contains("--cluster-secret-file"), "{}", ended.errors);
    let cluster =
        Cluster::start_with(2, &["--api-keys-file", &file, "--cluster-secret-file", &cluster_secret]);
    let ask = |method: &str, path: &str, shown: &str, body: &[u8]| {
        cluster[1].request(method, path, &[("authorization", &bearer(shown))], body)
    };
    for number in [1, 2] {
        let path = format!("/api/v1/cache/report%2F{number}");
        let answer = cluster[number].request("PUT", &path, &[("x-api-key", &web)], b"value");
        assert_eq!(answer.status, 204);
        assert_eq!(ask("GET", &path, &report, b"").status, 200);
        assert!(ask("PUT", &path, &report, b"x").expect_error(403, "forbidden").contains("may not write"));
        assert!(ask("DELETE", &path, &report, b"").expect_error(403, "forbidden").contains("may not write"));
    }
    let elsewhere = ask("GET", "/api/v1/cache/page%2F1", &report, b"").expect_error(403, "forbidden");
    assert!(elsewhere.contains("report/"), "{elsewhere}");
    assert_eq!(ask("HEAD", "/api/v1/cache/page%2F1", &report, b"").status, 403);
    assert_eq!(ask("GET", "/api/v1/stats", &report, b"").status, 200);

    // A batch is judged operation by operation.
    let operations = json!({"operations": [
        {"op": "get", "key": "report/1"}, {"op": "get", "key": "page/1"}, {"op": "put", "key": "report/1", "value": "x"},
        {"op": "delete", "key": "report/1"},
    ]});
    let answer = ask("POST", "/api/v1/batch", &report, operations.to_string().as_bytes()).expect(200);
    let statuses: Vec<_> =
        answer["results"].as_array().expect("results").iter().map(|one| &one["status"]).collect();
    assert_eq!(statuses, [200, 403, 403, 403], "{answer}");

    for path in ["/api/v1/cache/report%2F1", "/api/v1/stats", "/api/v1/batch", "/api/v1/nothing", "/nothing"]
    {
        let answer = cluster[1].request("GET", path, &[], b"");
        answer.expect_error(401, "unauthorized");
        assert_eq!(answer.header("www-authenticate"), Some("Bearer"));
    }
    let last = if web.ends_with('A') { 'B' } else { 'A' };
    let unknown = format!("{}{last}", &web[..web.len() - 1]);
    for wrong in ["", "web", "web.", &report_line, &unknown, &web.replace("web.", "report.")] {
        ask("GET", "/api/v1/cache/report%2F1", wrong, b"").expect_error(401, "unauthorized");
    }
    for other in [format!("Basic {web}"), web.clone()] {
        let answer = cluster[1].request("GET", "/api/v1/cache/report%2F1", &[("authorization", &other)], b"");
        answer.expect_error(401, "unauthorized");
    }
    assert_eq!(cluster[1].get("/api/v1/health").status, 200);
    assert_eq!(cluster[1].get("/admin/nodes").status, 200, "this is asked from the node's own machine");
}

#[test]
fn keys_are_read_again_when_told_and_not_when_they_are_unusable() {
    let folder = Folder::new();
    let (old_line, old) = issue(&["old"]);
    let (new_line, new) = issue(&["new"]);
    let file = folder.write("keys", &old_line);
    let cluster_secret = folder.write("secret", &secret());
    let flags = ["--api-keys-file", &file, "--cluster-secret-file", &cluster_secret];
    let mut cluster = Cluster::start_with(1, &flags);
    let status = |cluster: &Cluster, shown: &str| {
        cluster[1].request("GET", "/api/v1/stats", &[("x-api-key", shown)], b"").status
    };
    assert_eq!([status(&cluster, &old), status(&cluster, &new)], [200, 401]);
    folder.write("keys", &format!("{new_line}and something else"));
    cluster.node(1).process().signal(Signal::HUP);
    cluster.wait_until("it complains", PATIENCE, || cluster[1].log().text().contains("nothing was changed"));
    assert!(cluster[1].log().says("line 2: "), "{}", cluster[1].log().tail(3));
    assert_eq!([status(&cluster, &old), status(&cluster, &new)], [200, 401]);
    folder.write("keys", &new_line);
    cluster.node(1).process().signal(Signal::HUP);
    cluster.wait_until("the new key is known", PATIENCE, || status(&cluster, &new) == 200);
    assert_eq!(status(&cluster, &old), 401);
    folder.set_mode("keys", 0o666);
    let ended = run(&[&["node", "--listen", "127.0.0.1:0"], &flags[..]].concat());
    assert!(ended.code == 2 && ended.errors.contains("chmod 644"), "{}", ended.errors);
}

/// An address of this machine that is not loopback; none where there is no network at all.
fn outside() -> Option<std::net::IpAddr> {
    // Nothing is sent: connecting a datagram socket only chooses the address.
    let socket = std::net::UdpSocket::bind("0.0.0.0:0").ok()?;
    socket.connect("192.0.2.1:9").ok()?;
    Some(socket.local_addr().ok()?.ip()).filter(|address| !address.is_loopback() && !address.is_unspecified())
}

#[test]
fn admin_is_for_this_machine_or_for_who_has_the_token() {
    let folder = Folder::new();
    let token = secret();
    let file = folder.write("token", &format!("{token}\n"));
    let node = Node::start("n1", &["--admin-token-file", &file]);
    for path in
        ["/admin/cluster", "/admin/nodes", "/admin/metrics", "/metrics", "/admin/locate/a", "/admin/events"]
    {
        let shown = |headers: &[(&str, &str)]| node.request("GET", path, headers, b"");
        shown(&[]).expect_error(401, "unauthorized");
        shown(&[("authorization", "Bearer something-else-entirely")]).expect_error(401, "unauthorized");
        if path != "/admin/events" {
            assert_eq!(shown(&[("authorization", &bearer(&token))]).status, 200, "{path}");
        }
    }
    node.request("POST", "/admin/cluster/rebalance", &[], b"").expect_error(401, "unauthorized");
    node.put("key", "the cache is open");
    let nodes = ["nodes", "--node", &node.address.to_string()];
    assert_eq!(run(&nodes).code, 1);
    let ended = run(&[&nodes[..], &["--token-file", &file]].concat());
    assert!(ended.code == 0 && ended.output.contains("n1"), "{} {}", ended.output, ended.errors);
    folder.write("short", "1234");
    let short = folder.path("short");
    let ended =
        run(&["node", "--listen", "127.0.0.1:0", "--admin-token-file", short.to_str().expect("a path")]);
    assert!(ended.code == 2 && ended.errors.contains("at least 20"), "{}", ended.errors);
}

#[test]
fn without_a_token_admin_is_refused_to_callers_from_elsewhere() {
    let Some(address) = outside() else {
        return eprintln!("this machine has no address but loopback: not shown here");
    };
    let listen = SocketAddr::new(address, crate::proxy::bind_both().2.port());
    let node = Node::start_at("n1", listen, &["--insecure"]);
    for path in ["/admin/cluster", "/admin/nodes", "/metrics", "/admin/events"] {
        let message = node.get(path).expect_error(403, "forbidden");
        assert!(message.contains("--admin-token-file"), "{message}");
    }
    node.request("POST", "/admin/cluster/rebalance", &[], b"").expect_error(403, "forbidden");
    node.put("key", "the cache is open");
}

#[test]
fn a_stream_of_events_ends_when_its_token_is_no_longer_the_one() {
    let folder = Folder::new();
    let (old, new) = (secret(), secret());
    let file = folder.write("token", &old);
    let mut cluster = Cluster::start(0);
    cluster.admit(Node::start("n1", &["--admin-token-file", &file]));
    let mut stream = http::connect(cluster[1].address).expect("a connection");
    let request =
        format!("GET /admin/events HTTP/1.1\r\nhost: localhost\r\nauthorization: Bearer {old}\r\n\r\n");
    stream.write_all(request.as_bytes()).expect("it is sent");
    let mut read_until = |end: &str| {
        let (mut seen, started) = (Vec::new(), Instant::now());
        while !String::from_utf8_lossy(&seen).contains(end) {
            let mut some = [0; 4096];
            let bytes = stream.read(&mut some).expect("it is open");
            assert!(bytes > 0 && started.elapsed() < PATIENCE, "{}", String::from_utf8_lossy(&seen));
            seen.extend_from_slice(&some[..bytes]);
        }
        String::from_utf8_lossy(&seen).into_owned()
    };
    read_until("event: snapshot");
    folder.write("token", &new);
    cluster.node(1).process().signal(Signal::HUP);
    let admin = |token: &str| {
        cluster[1].request("GET", "/admin/nodes", &[("authorization", &bearer(token))], b"").status
    };
    cluster.wait_until("the new token is known", PATIENCE, || admin(&new) == 200);
    assert_eq!(admin(&old), 401);
    let seed = cluster[1].address.to_string();
    let _second = Node::start("n2", &["--join", &seed]);
    let rest = read_until("0\r\n\r\n");
    assert!(!rest.contains("n2"), "{rest}");
}

#[test]
fn a_page_of_another_site_is_answered_only_where_it_needs_a_credential() {
    let folder = Folder::new();
    let token = secret();
    let open = Node::start("n1", &[]);
    let own = format!("http://{}", open.address);
    let calls = [
        ("PUT", "/api/v1/cache/a"),
        ("GET", "/api/v1/cache/a"),
        ("POST", "/admin/cluster/rebalance"),
        ("POST", "/internal/cluster/leave"),
        ("GET", "/metrics"),
        ("GET", "/nothing"),
    ];
    for (method, path) in calls {
        for header in [
            ("origin", "http://evil.example"),
            ("origin", "null"),
            ("origin", "http://127.0.0.1:1"),
            ("sec-fetch-site", "cross-site"),
            ("sec-fetch-site", "same-site"),
        ] {
            let answer = open.request(method, path, &[header], b"v");
            assert!(answer.expect_error(403, "forbidden").contains("another site"), "{method} {path}");
        }
    }
    assert_eq!(open.value("a"), None);
    for header in [("origin", &*own), ("sec-fetch-site", "same-origin"), ("sec-fetch-site", "none")] {
        assert_eq!(open.request("PUT", "/api/v1/cache/a", &[header], b"v").status, 204, "{header:?}");
    }
    assert_eq!(open.request("GET", "/api/v1/health", &[("origin", "null")], b"").status, 200);
    // No page has the token but one that was given it.
    let file = folder.write("token", &token);
    let closed = Node::start("n2", &["--admin-token-file", &file]);
    let shown = [("origin", "http://dashboard.example"), ("authorization", &bearer(&token))];
    assert_eq!(closed.request("GET", "/admin/nodes", &shown, b"").status, 200);
}

#[test]
fn a_page_by_dns_rebinding_is_refused_where_no_credential_is_asked_for() {
    let mut cluster = Cluster::start_with(1, &["--allow-host", "cache.example,balancer"]);
    let (to, port) = (cluster[1].address, cluster[1].address.port());
    let ask = |to: SocketAddr, method: &str, path: &str, host: &str, more: &str| {
        let request = format!(
            "{method} {path} HTTP/1.1\r\nhost: {host}\r\nsec-fetch-site: same-origin\r\n{more}connection: close\r\n\
             content-length: 0\r\n\r\n"
        );
        http::exchange(to, request.as_bytes()).expect("an answer")
    };
    let evil = format!("evil.example:{port}");
    for (method, path) in [
        ("PUT", "/api/v1/cache/a"),
        ("GET", "/api/v1/cache/a"),
        ("GET", "/internal/cache/a"),
        ("POST", "/api/v1/batch"),
        ("GET", "/api/v1/stats"),
        ("GET", "/admin/nodes"),
        ("GET", "/metrics"),
        ("POST", "/internal/cluster/leave"),
        ("GET", "/nothing"),
    ] {
        for host in
            [&*evil, "evil.example", "", "localhost.evil.example", "localhost.", "127.0.0.1.evil.example"]
        {
            let message = ask(to, method, path, host, "").expect_error(403, "forbidden");
            let names = ["an IP address, localhost, cache.example, balancer", "--allow-host"];
            assert!(names.iter().all(|name| message.contains(name)), "{host}: {message}");
        }
        // The target goes before the header.
        let absolute = format!("http://{evil}{path}");
        ask(to, method, &absolute, "localhost", "").expect_error(403, "forbidden");
    }
    assert!(cluster.node(1).process().exit_status().is_none(), "it was not told to leave");
    assert_eq!(cluster[1].value("a"), None);
    for host in [
        &*format!("127.0.0.1:{port}"),
        "127.0.0.1",
        "192.0.2.1:80",
        "[::1]:8001",
        "LOCALHOST:1",
        "cache.example",
        "Balancer:443",
    ] {
        assert_eq!(ask(to, "PUT", "/api/v1/cache/b", host, "").status, 204, "{host}");
        assert_eq!(ask(to, "GET", "/admin/nodes", host, "").status, 200, "{host}");
    }
    assert_eq!(ask(to, "GET", "http://balancer/api/v1/stats", "evil.example", "").status, 200);
    // Whoever asks how it is may call it what they like.
    assert_eq!(ask(to, "GET", "/api/v1/health", "evil.example", "").status, 200);

    // The name that others are told is the node's own; who shows a credential is no page.
    let folder = Folder::new();
    let (token, cluster_secret) = (secret(), folder.write("secret", &secret()));
    let (line, key) = issue(&["web"]);
    let (token_file, keys) = (folder.write("token", &token), folder.write("keys", &line));
    let flags = [
        "--admin-token-file",
        &token_file,
        "--api-keys-file",
        &keys,
        "--cluster-secret-file",
        &cluster_secret,
    ];
    let closed = Node::start("n2", &flags);
    let show = |shown: &str| format!("authorization: Bearer {shown}\r\n");
    assert_eq!(ask(closed.address, "GET", "/admin/nodes", "dashboard.example", &show(&token)).status, 200);
    assert_eq!(ask(closed.address, "GET", "/api/v1/stats", "cache.example", &show(&key)).status, 200);
    let listen = crate::proxy::bind_both().2;
    let advertised = format!("localhost:{}", listen.port());
    let named = Node::start_at("n3", listen, &["--advertise", &advertised]);
    assert_eq!(ask(named.address, "GET", "/api/v1/stats", &advertised, "").status, 200);
}
