//! A network that falls in two and heals, by proxies that are cut.

use std::net::SocketAddr;
use std::thread::sleep;
use std::time::Duration;

use crate::cluster::Cluster;
use crate::node::Node;
use crate::process::PATIENCE;
use crate::proxy::{Proxy, bind_both};

/// Two nodes that reach each other only through their proxies.
fn proxied_pair() -> (Cluster, [Proxy; 2]) {
    let listen: [SocketAddr; 2] = [bind_both().2, bind_both().2];
    let proxies = listen.map(Proxy::start);
    let advertised = [0, 1].map(|index: usize| proxies[index].address.to_string());
    let mut cluster = Cluster::default();
    let start = |index: usize, flags: &[&str]| {
        let flags = [&["--advertise", &advertised[index]], flags].concat();
        Node::start_at(&format!("n{}", index + 1), listen[index], &flags)
    };
    cluster.admit(start(0, &[]));
    cluster.admit(start(1, &["--join", &advertised[0]]));
    cluster.wait_until("the pair is formed", PATIENCE, || cluster.is_whole());
    (cluster, proxies)
}

#[test]
fn a_pair_that_was_split_serves_on_both_sides_and_heals_into_one_ring() {
    let _alone = crate::measured();
    let (cluster, proxies) = proxied_pair();
    cluster[1].put("before", "the split");
    assert_eq!(cluster[2].value("before").as_deref(), Some("the split"));

    proxies.iter().for_each(Proxy::cut);
    sleep(Duration::from_secs(5));
    for (here, there) in [(1, "n2"), (2, "n1")] {
        let node = &cluster[here];
        let view = node.view().expect("it still serves");
        assert_eq!(view.members[there].0, "unhealthy", "at {}", node.id);
        let key = format!("written at {}", node.id);
        node.put(&key, "alone");
        assert_eq!(node.value(&key).as_deref(), Some("alone"));
    }

    proxies.iter().for_each(Proxy::mend);
    cluster.wait_until("the pair is one ring again", Duration::from_secs(5), || cluster.is_whole());
    for key in ["written at n1", "written at n2"] {
        for node in cluster.running() {
            assert_eq!(node.value(key).as_deref(), Some("alone"), "{key:?}, read at {}", node.id);
        }
    }
}
