//! What a request costs in CPU: at the node that owns the key, through another node, in a cluster that has a secret, under
//! TLS, and in a bare hyper server.
//!
//! Every subject answers the same bytes under the same headers to the same load, one short round after the other
//! (A B C A B C …), so that whatever else the machine does hits all of them. CPU is user and system time of all threads
//! of the processes concerned. Flags: `--rounds N`, `--seconds S`, `--only TEXT` for the subjects whose name contains it,
//! and `--other PATH` for a second shoal binary in the same rounds, which is how a change is compared with what was
//! before it.

mod closed;
#[path = "../common/mod.rs"]
mod common;
mod load;
mod peers;

use common::{Figures, Node, Result, SHOAL, are_whole, exchange, flag, http, wait_until};
use load::{Load, Round};

#[global_allocator]
static ALLOCATOR: tikv_jemallocator::Jemalloc = tikv_jemallocator::Jemalloc;

const KEY_PATH: &str = "/api/v1/cache/";
const VALUE_BYTES: usize = 100;

fn main() -> Result<()> {
    if let Some(answer) = peers::bare_asked_for() {
        return peers::serve_bare(answer);
    }
    let (rounds, seconds) = (flag("--rounds", 7)?, flag("--seconds", 3)?);
    let load = Load::new(seconds)?;
    let this = Pair::start(SHOAL, &[])?;
    let mut subjects = vec![peers::bare(&this.answer)?];
    subjects.extend(this.subjects(""));
    let files = closed::Files::new()?;
    let sealed = Pair::start(SHOAL, &files.secret_flags())?;
    subjects.extend(sealed.subjects("sealed "));
    let tls = closed::start_tls(&files, &this)?;
    subjects.extend(tls.subjects("TLS "));
    match peers::nginx_pair(&this.answer) {
        Ok(Some(nginx)) => subjects.push(nginx),
        Ok(None) => println!("nginx is not on PATH: no row for nginx proxying to nginx"),
        Err(error) => println!("no row for nginx proxying to nginx: {error}"),
    }
    let other = flag("--other", String::new())?;
    let mut others = Vec::new();
    if !other.is_empty() {
        for (name, flags) in [("other ", &[][..]), ("other sealed ", &files.secret_flags())] {
            let pair = Pair::start(&other, flags)?;
            subjects.extend(pair.subjects(name));
            others.push(pair);
        }
    }

    let only = flag("--only", String::new())?;
    subjects.retain(|subject| subject.name.contains(&only));
    for subject in &subjects {
        // To open connections, fault in memory, and fail early.
        load.run(subject)?;
    }
    for round in 0..rounds {
        eprint!("\rround {} of {rounds}", round + 1);
        for subject in &mut subjects {
            let measured = load.run(subject)?;
            subject.rounds.push(measured);
        }
    }
    eprintln!();
    println!("{rounds} rounds of {seconds} s, {} connections, {VALUE_BYTES} B values", load::CONNECTIONS);
    print_subjects(&subjects);
    print_ratios(&subjects);
    Ok(())
}

/// Something that is put under load.
pub(crate) struct Subject {
    name: String,
    method: &'static str,
    url: String,
    pids: Vec<u32>,
    rounds: Vec<Round>,
    /// Kept running as long as the subject is measured.
    _processes: Vec<common::Process>,
}

impl Subject {
    pub(crate) fn new(name: impl Into<String>, method: &'static str, url: String, pids: Vec<u32>) -> Subject {
        Subject { name: name.into(), method, url, pids, rounds: Vec::new(), _processes: Vec::new() }
    }

    pub(crate) fn keeping(mut self, processes: Vec<common::Process>) -> Subject {
        self._processes = processes;
        self
    }

    fn cpu(&self) -> Figures {
        self.rounds.iter().map(|round| round.cpu_us).collect()
    }
}

/// Two nodes, and a key whose only copy is at the first.
struct Pair {
    nodes: [Node; 2],
    scheme: &'static str,
    key: String,
    answer: Answer,
}

/// What a local GET answers, for others to answer the same.
pub(crate) struct Answer {
    pub(crate) etag: String,
    pub(crate) body: String,
}

impl Pair {
    fn start(binary: &str, flags: &[&str]) -> Result<Pair> {
        let nodes = start_nodes(binary, flags)?;
        wait_until("two nodes see each other", || are_whole(&nodes))?;
        let [first, second] = &nodes;
        let key = key_of(first)?;
        let value = format!("{{\"value\":\"{}\"}}", "v".repeat(VALUE_BYTES));
        let path = format!("{KEY_PATH}{key}");
        http(first.address, "PUT", &path, &value)?;
        let (_, located) = http(second.address, "GET", &format!("/admin/locate/{key}"), "")?;
        let located: serde_json::Value = serde_json::from_str(&located)?;
        if located["owners"] != serde_json::json!([{"node_id": first.id, "holds": true}]) {
            return Err(format!("the key is not where it belongs: {located}").into());
        }
        let (head, body) = exchange(first.address, "GET", &path, "")?;
        let etag =
            head.lines().find_map(|line| line.strip_prefix("etag: ")).ok_or("a hit without an ETag")?;
        let answer = Answer { etag: etag.into(), body };
        Ok(Pair { nodes, scheme: "http", key, answer })
    }

    fn subjects(&self, prefix: &str) -> Vec<Subject> {
        let [first, second] = &self.nodes;
        let pids = [first.process.0.id(), second.process.0.id()];
        let subject = |name: &str, method, node: &Node, pids: &[u32]| {
            let url = format!("{}://{}{KEY_PATH}{}", self.scheme, node.address, self.key);
            Subject::new(format!("{prefix}{name}"), method, url, pids.to_vec())
        };
        vec![
            subject("local GET", "GET", first, &pids[..1]),
            subject("forwarded GET", "GET", second, &pids),
            subject("local PUT", "PUT", first, &pids[..1]),
            subject("forwarded PUT", "PUT", second, &pids),
        ]
    }
}

/// Two nodes of which the second joins the first.
fn start_nodes(binary: &str, flags: &[&str]) -> Result<[Node; 2]> {
    let flags = [&["--copies", "1", "--log", "warn,shoal::server=info"], flags].concat();
    let first = Node::start(binary, "first", "127.0.0.1:0", &flags)?;
    let seed = first.address.to_string();
    let second = Node::start(binary, "second", "127.0.0.1:0", &[&flags[..], &["--join", &seed]].concat())?;
    Ok([first, second])
}

/// A key that `node` is to hold.
fn key_of(node: &Node) -> Result<String> {
    for number in 0..1000 {
        let key = format!("benchmark:{number:06}");
        let (_, body) = http(node.address, "GET", &format!("/admin/locate/{key}"), "")?;
        let location: serde_json::Value = serde_json::from_str(&body)?;
        if location["owners"][0]["node_id"] == node.id {
            return Ok(key);
        }
    }
    Err("none of 1000 keys belongs to the first node".into())
}

fn print_subjects(subjects: &[Subject]) {
    println!(
        "\n{:<28}{:>16}{:>16}{:>12}{:>10}{:>10}",
        "", "CPU µs/request", "min–max", "requests/s", "p50 µs", "p99 µs"
    );
    for subject in subjects {
        let median = |of: fn(&Round) -> f64| subject.rounds.iter().map(of).collect::<Figures>().median();
        let cpu = subject.cpu();
        println!(
            "{:<28}{:>16.2}{:>16}{:>12.0}{:>10.0}{:>10.0}",
            subject.name,
            cpu.median(),
            format!("{:.2}–{:.2}", cpu.min(), cpu.max()),
            median(|round| round.per_second),
            median(|round| round.p50_us),
            median(|round| round.p99_us),
        );
    }
}

/// Each ratio is worked out within a round; what is printed is the median of the rounds.
fn print_ratios(subjects: &[Subject]) {
    println!("\n{:<44}{:>8}{:>16}", "CPU, round by round", "median", "min–max");
    let pairs = [
        ("local GET", "bare hyper GET"),
        ("forwarded GET", "local GET"),
        ("forwarded PUT", "local PUT"),
        ("forwarded GET", "nginx to nginx GET"),
        ("sealed local GET", "local GET"),
        ("sealed forwarded GET", "forwarded GET"),
        ("sealed local PUT", "local PUT"),
        ("sealed forwarded PUT", "forwarded PUT"),
        ("TLS local GET", "local GET"),
        ("TLS forwarded GET", "forwarded GET"),
        ("TLS local PUT", "local PUT"),
        ("TLS forwarded PUT", "forwarded PUT"),
        ("local GET", "other local GET"),
        ("forwarded GET", "other forwarded GET"),
        ("local PUT", "other local PUT"),
        ("forwarded PUT", "other forwarded PUT"),
        ("sealed forwarded GET", "other sealed forwarded GET"),
        ("sealed forwarded PUT", "other sealed forwarded PUT"),
    ];
    let find = |name: &str| subjects.iter().find(|subject| subject.name == name);
    for (of, over) in pairs {
        let (Some(of), Some(over)) = (find(of), find(over)) else { continue };
        let ratio = of.cpu().over(&over.cpu());
        let range = format!("{:.2}–{:.2}", ratio.min(), ratio.max());
        println!("{:<44}{:>8.3}{:>16}", format!("{} ÷ {}", of.name, over.name), ratio.median(), range);
    }
}
