//! The client against servers that write literal bytes.

use tokio::io::{AsyncReadExt, AsyncWriteExt};

use super::*;
use crate::net::TcpListener;

/// A server that gives one literal answer to one request, and the request it got.
async fn canned(answer: &'static str) -> (Client, tokio::task::JoinHandle<String>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let client = Client::new(listener.local_addr().unwrap().to_string());
    let got = tokio::spawn(async move {
        let (mut stream, _) = listener.accept().await.unwrap();
        let mut request = vec![0; 4096];
        let bytes = stream.read(&mut request).await.unwrap();
        stream.write_all(answer.as_bytes()).await.unwrap();
        String::from_utf8_lossy(&request[..bytes]).into_owned()
    });
    (client, got)
}

#[tokio::test]
async fn a_hit_brings_the_bytes_and_their_type() {
    let (client, got) = canned(
        "HTTP/1.1 200 OK\r\ncontent-type: image/png\r\netag: \"7\"\r\ncache-control: max-age=60\r\n\
         content-length: 3\r\n\r\nabc",
    )
    .await;
    let hit = client.get("a/b ü").await.unwrap().unwrap();
    assert_eq!((&hit.value[..], hit.content_type.as_deref()), (&b"abc"[..], Some("image/png")));
    assert_eq!((hit.etag.as_deref(), hit.ttl), (Some("\"7\""), Some(Duration::from_secs(60))));
    assert!(got.await.unwrap().starts_with("GET /api/v1/cache/a%2Fb%20%C3%BC HTTP/1.1\r\n"));
}

#[tokio::test]
async fn a_missing_key_is_no_error_and_a_missing_path_is() {
    let (client, _) =
        canned("HTTP/1.1 404 Not Found\r\ncontent-length: 25\r\n\r\n{\"key\":\"a\",\"found\":false}").await;
    assert_eq!(client.get("a").await.unwrap(), None);
    let (client, _) = canned(
        "HTTP/1.1 404 Not Found\r\ncontent-length: 36\r\n\r\n{\"error\":\"not_found\",\"message\":\"no\"}  ",
    )
    .await;
    assert!(matches!(client.get("a").await, Err(ClientError::Refused { status: 404, .. })));
}

/// A server that gives the answers of one connection after another, and says which got which request.
async fn canned_connections(
    connections: Vec<Vec<&'static str>>,
) -> (Client, tokio::task::JoinHandle<Vec<(usize, String)>>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let client = Client::new(listener.local_addr().unwrap().to_string());
    let got = tokio::spawn(async move {
        let mut got = Vec::new();
        for (connection, answers) in connections.into_iter().enumerate() {
            let (mut stream, _) = listener.accept().await.unwrap();
            for answer in answers {
                let mut request = vec![0; 4096];
                let bytes = stream.read(&mut request).await.unwrap();
                let line = String::from_utf8_lossy(&request[..bytes]).lines().next().unwrap_or("").into();
                got.push((connection, line));
                stream.write_all(answer.as_bytes()).await.unwrap();
            }
        }
        got
    });
    (client, got)
}

const STORED: &str = "HTTP/1.1 204 No Content\r\n\r\n";

#[tokio::test]
async fn calls_one_after_another_use_one_connection() {
    let (client, got) = canned_connections(vec![vec![STORED; 3]]).await;
    for key in ["a", "b", "c"] {
        client.put(key, "1", &PutOptions::default()).await.unwrap();
    }
    let line = |key| (0, format!("PUT /api/v1/cache/{key} HTTP/1.1"));
    assert_eq!(got.await.unwrap(), [line("a"), line("b"), line("c")]);
}

#[tokio::test]
async fn a_kept_connection_that_the_node_closes_is_opened_again() {
    // The first connection takes the second request and closes without a word.
    let (client, got) = canned_connections(vec![vec![STORED, ""], vec![STORED]]).await;
    for key in ["a", "b"] {
        client.put(key, "1", &PutOptions::default()).await.unwrap();
    }
    let line = |connection, key| (connection, format!("PUT /api/v1/cache/{key} HTTP/1.1"));
    assert_eq!(got.await.unwrap(), [line(0, "a"), line(0, "b"), line(1, "b")]);
}

#[tokio::test]
async fn a_node_that_is_stopping_says_how_it_is() {
    let body = r#"{"status":"stopping","node_id":"node1","timestamp":"now","uptime":7}"#;
    let answer = format!("HTTP/1.1 503 X\r\ncontent-length: {}\r\n\r\n{body}", body.len());
    let (client, _) = canned(answer.leak()).await;
    let health = client.health().await.unwrap();
    assert_eq!((health.status.as_str(), health.uptime), ("stopping", 7));
}

#[tokio::test]
async fn events_arrive_until_the_node_closes_the_stream() {
    let (client, _) = canned(
        "HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\n\r\nid: 1\nevent: member_up\ndata: {}\n\n",
    )
    .await;
    let mut events = client.events().await.unwrap();
    assert_eq!(events.next().await.unwrap().kind, "member_up");
    assert!(matches!(events.next().await, Err(ClientError::Unreachable { .. })));
}

#[tokio::test]
async fn a_refusal_is_not_taken_for_a_stream_of_events() {
    let (client, _) =
        canned("HTTP/1.1 503 X\r\ncontent-length: 39\r\n\r\n{\"error\":\"overloaded\",\"message\":\"full\"}")
            .await;
    assert!(matches!(client.events().await, Err(ClientError::Refused { status: 503, .. })));
    let (client, _) = canned("HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nhi").await;
    assert!(matches!(client.events().await, Err(ClientError::Protocol(_))));
}

#[tokio::test]
async fn a_node_that_never_answers_is_waited_for_once_and_not_for_ever() {
    // A listener that nobody accepts from: the system connects, and then nothing comes.
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let mut client = Client::new(listener.local_addr().unwrap().to_string());
    client.timeout = Duration::from_millis(100);
    assert!(matches!(client.get("a").await, Err(ClientError::Timeout { .. })));
    assert!(matches!(client.events().await, Err(ClientError::Timeout { .. })));
}

#[tokio::test]
async fn nobody_there_is_unreachable_and_says_why() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    drop(listener);
    let error = Client::new(address.to_string()).get("a").await.unwrap_err();
    assert!(error.to_string().contains("cannot be reached: "), "{error}");
}
