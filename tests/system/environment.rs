//! What orchestrators hand over to a node besides files: variables, addresses, host names.

use crate::http;
use crate::namespace::is_inside_of;
use crate::process::{PATIENCE, Process, poll, run};

const AT_ANY_PORT: [&str; 5] = ["node", "--listen", "127.0.0.1:0", "--log-format", "json"];

fn starts(variables: &[(&str, &str)], arguments: &[&str]) {
    let process = Process::spawn_with(variables, arguments);
    let started = poll(PATIENCE, || process.log().address().is_some());
    assert!(started, "{variables:?} {arguments:?}: {}", process.log().tail(20));
}

#[test]
fn variables_are_taken_as_orchestrators_write_them() {
    let empty =
        ["SHOAL_JOIN", "SHOAL_ID", "SHOAL_ADVERTISE", "SHOAL_MAX_MEMORY", "SHOAL_LISTEN", "SHOAL_INSECURE"];
    starts(&empty.map(|name| (name, "")), &AT_ANY_PORT);
    starts(&[("SHOAL_JOIN", "127.0.0.1:1,"), ("SHOAL_MAX_MEMORY", "512Mi")], &AT_ANY_PORT);
    let beyond = ["node", "--listen", "0.0.0.0:0", "--advertise", "127.0.0.1:9", "--log-format", "json"];
    for yes in ["1", "true", "yes"] {
        starts(&[("SHOAL_INSECURE", yes), ("SHOAL_ACCESS_LOG", yes)], &beyond);
    }
    // What Kubernetes says of a service by the name of shoal.
    starts(&[("SHOAL_PORT", "tcp://10.0.0.1:8001"), ("SHOAL_SERVICE_HOST", "10.0.0.1")], &AT_ANY_PORT);
}

#[test]
fn a_variable_that_nothing_looks_at_is_named_with_the_nearest() {
    for (variable, said) in [
        (
            ("SHOAL_MAX_MEMRY", "1GiB"),
            "SHOAL_MAX_MEMRY: there is no such variable; the nearest is SHOAL_MAX_MEMORY",
        ),
        (("SHOAL_INSECURE", "perhaps"), "perhaps"),
        // Left empty by mistake, it would let everybody in.
        (("SHOAL_API_KEYS_FILE", ""), "--api-keys-file"),
    ] {
        let mut process = Process::spawn_with(&[variable], AT_ANY_PORT);
        assert_eq!(process.wait(PATIENCE).code(), Some(2), "{variable:?}");
        assert!(process.log().says(said), "{variable:?}: {}", process.log().text());
    }
}

/// Two addresses and no way out, as a container has them on an internal network of both families; its own name and another one
/// stand for both.
const DUAL_STACK: &str = "ip link set lo up && ip link add eth0 type veth peer name eth1 && ip link set eth1 up && \
     ip addr add 10.77.0.5/24 dev eth0 && ip -6 addr add fd00:77::5/64 dev eth0 nodad && ip link set eth0 up && \
     mount -t tmpfs tmpfs /mnt && printf \"fd00:77::5 both $(hostname)\\n10.77.0.5 both $(hostname)\\n127.0.0.1 localhost\\n\" >/mnt/hosts && \
     mount --bind /mnt/hosts /etc/hosts && exec \"$@\"";

/// The address that a node started with these flags tells others.
fn advertised(flags: &[&str]) -> String {
    let process =
        Process::spawn([&["node", "--insecure", "--log-format", "json", "--id", "n1"], flags].concat());
    let started = poll(PATIENCE, || process.log().address().is_some());
    assert!(started, "{flags:?}: {}", process.log().tail(20));
    let address = process.log().address().expect("it started");
    let answers = || http::request(address, "GET", "/api/v1/health", &[], b"").is_ok();
    assert!(poll(PATIENCE, answers), "{flags:?}: nothing listens at {address}");
    address.ip().to_string()
}

#[test]
fn others_are_told_an_address_at_which_the_node_listens() {
    let name = "environment::others_are_told_an_address_at_which_the_node_listens";
    if !is_inside_of(name, &["--map-root-user", "--net", "--mount"], DUAL_STACK) {
        return;
    }
    for (flags, told) in [
        (&["--listen", ":0"][..], "10.77.0.5"),
        (&["--listen", "0.0.0.0:0", "--advertise", "auto"], "10.77.0.5"),
        (&["--listen", "0.0.0.0:0", "--join", "both:7001"], "10.77.0.5"),
        (&["--listen", "[::]:0", "--join", "[fd00:77::9]:7001"], "fd00:77::5"),
        (&["--listen", "[::]:0", "--join", "10.77.0.9:7001"], "10.77.0.5"),
        (&["--listen", "0.0.0.0:8001", "--advertise", "both:8001"], "10.77.0.5"),
        (&["--listen", "0.0.0.0"], "10.77.0.5"),
        (&["--listen", ":8001", "--join", "127.0.0.1:7001"], "10.77.0.5"),
    ] {
        assert_eq!(advertised(flags), told, "{flags:?}");
    }
    let refused = run(&["node", "--insecure", "--listen", "0.0.0.0:0", "--advertise", "[fd00:77::5]:8001"]);
    assert_eq!(refused.code, 2);
    assert!(
        refused.errors.contains("is fd00:77::5, and a node that listens on 0.0.0.0:0"),
        "{}",
        refused.errors
    );
}

#[test]
fn host_names_that_differ_at_their_ends_give_two_names_also_where_proc_is_hidden() {
    let name = "environment::host_names_that_differ_at_their_ends_give_two_names_also_where_proc_is_hidden";
    let set_up = "ip link set lo up && mount -t tmpfs tmpfs /proc && exec \"$@\"";
    if !is_inside_of(name, &["--map-root-user", "--net", "--uts", "--mount"], set_up) {
        return;
    }
    let id_on = |host: &str| {
        let named = std::process::Command::new("hostname").arg(host).status().expect("hostname runs");
        assert!(named.success(), "{host}: {named}");
        let process = Process::spawn(AT_ANY_PORT);
        assert!(poll(PATIENCE, || process.log().address().is_some()), "{}", process.log().tail(20));
        let lines = process.log().with_message("the node starts");
        lines[0]["id"].as_str().expect("a name").to_string()
    };
    // Linux lets a host name have 64 letters.
    let pods = ["7d4b9", "x2k8q"]
        .map(|end| format!("{}-{end}", "a-deployment-with-a-name-that-fills-all-there-is-room-for"));
    let [one, other] = pods.each_ref().map(|pod| id_on(pod));
    let [one, other] =
        [one, other].map(|id| id.rsplit_once('-').map(|(host, _)| host.to_string()).expect("a port"));
    assert!(
        one != other && one.starts_with("a-deployment") && other.starts_with("a-deployment"),
        "{one} {other}"
    );
}
