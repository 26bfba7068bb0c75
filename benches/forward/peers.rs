//! What the nodes are compared with: a bare hyper server, and nginx proxying to nginx.

use std::convert::Infallible;
use std::fs;
use std::io::{BufRead, BufReader};
use std::net::{SocketAddr, TcpListener};
use std::path::Path;
use std::process::{Command, Stdio};

use bytes::Bytes;
use http_body_util::Full;
use hyper::header::{CONTENT_TYPE, ETAG, HeaderValue};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::{Request, Response};
use hyper_util::rt::TokioIo;

use super::common::{Process, Result, http, wait_until};
use super::{Answer, Subject};

/// The first argument that turns this executable into the bare server; the tag and the body follow.
const BARE: &str = "--bare";

/// The least that answers HTTP with hyper, on the runtime and the allocator that a node has.
pub(crate) fn bare(answer: &Answer) -> Result<Subject> {
    let mut child = Command::new(std::env::current_exe()?)
        .args([BARE, &answer.etag, &answer.body])
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .spawn()?;
    let stdout = child.stdout.take().ok_or("no standard output")?;
    let process = Process(child);
    let mut address = String::new();
    BufReader::new(stdout).read_line(&mut address)?;
    let (url, pids) = (format!("http://{}/", address.trim()), vec![process.0.id()]);
    Ok(Subject::new("bare hyper GET", "GET", url, pids).keeping(vec![process]))
}

/// What to answer, if this process is to be the bare server.
pub(crate) fn bare_asked_for() -> Option<Answer> {
    let mut arguments = std::env::args().skip(1);
    (arguments.next()? == BARE).then_some(())?;
    Some(Answer { etag: arguments.next()?, body: arguments.next()? })
}

#[tokio::main]
pub(crate) async fn serve_bare(answer: Answer) -> Result<()> {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await?;
    println!("{}", listener.local_addr()?);
    let (etag, body) = (HeaderValue::from_str(&answer.etag)?, Bytes::from(answer.body));
    loop {
        let (stream, _) = listener.accept().await?;
        stream.set_nodelay(true)?;
        let (etag, body) = (etag.clone(), body.clone());
        tokio::spawn(async move {
            let service = service_fn(|_: Request<hyper::body::Incoming>| {
                let mut response = Response::new(Full::new(body.clone()));
                response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
                response.headers_mut().insert(ETAG, etag.clone());
                async { Ok::<_, Infallible>(response) }
            });
            // A client that goes away is none of our business.
            let _ = http1::Builder::new().serve_connection(TokioIo::new(stream), service).await;
        });
    }
}

/// An nginx that asks another one over connections it keeps; none if there is no nginx. One process each: a worker
/// would outlive a master that is killed.
pub(crate) fn nginx_pair(answer: &Answer) -> Result<Option<Subject>> {
    if Command::new("nginx").arg("-v").stderr(Stdio::null()).status().is_err() {
        return Ok(None);
    }
    let (origin, proxy) = (free_address()?, free_address()?);
    let fixed = format!(
        "server {{ listen {origin}; default_type application/json; \
         location / {{ add_header ETag '{}'; return 200 '{}'; }} }}",
        answer.etag, answer.body
    );
    let forwarding = format!(
        "upstream origin {{ server {origin}; keepalive 64; keepalive_requests 1000000000; }} \
         server {{ listen {proxy}; location / {{ proxy_pass http://origin; proxy_http_version 1.1; \
         proxy_set_header Connection ''; }} }}"
    );
    let processes = vec![nginx("origin", &fixed)?, nginx("proxy", &forwarding)?];
    wait_until(
        "nginx answers through nginx",
        || matches!(http(proxy, "GET", "/", ""), Ok((200, body)) if body == answer.body),
    )?;
    let pids = processes.iter().map(|process| process.0.id()).collect();
    Ok(Some(Subject::new("nginx to nginx GET", "GET", format!("http://{proxy}/"), pids).keeping(processes)))
}

fn nginx(name: &str, server: &str) -> Result<Process> {
    let home = Path::new(env!("CARGO_TARGET_TMPDIR")).join(name);
    fs::create_dir_all(&home)?;
    let file = home.join("nginx.conf");
    let temporary: String = ["client_body", "proxy", "fastcgi", "uwsgi", "scgi"]
        .map(|kind| format!("{kind}_temp_path {kind}; "))
        .into_iter()
        .collect();
    let config = format!(
        "daemon off; master_process off; pid nginx.pid; error_log stderr crit; \
         events {{ worker_connections 1024; }} \
         http {{ access_log off; keepalive_requests 1000000000; {temporary}{server} }}\n"
    );
    fs::write(&file, config)?;
    let child =
        Command::new("nginx").arg("-p").arg(&home).arg("-c").arg(&file).stdin(Stdio::null()).spawn()?;
    Ok(Process(child))
}

/// An address that was free a moment ago.
fn free_address() -> Result<SocketAddr> {
    Ok(TcpListener::bind("127.0.0.1:0")?.local_addr()?)
}
