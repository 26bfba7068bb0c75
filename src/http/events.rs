//! `GET /admin/events`: what happens in the cluster, as Server-Sent Events.

use std::convert::Infallible;
use std::time::Duration;

use axum::extract::State;
use axum::response::sse::{self, KeepAlive, Sse};
use futures_util::{Stream, StreamExt, future, stream};
use tokio::sync::broadcast;
use tokio::sync::broadcast::error::RecvError;

use super::Edge;
use super::error::ApiError;
use super::limits::Held;
use crate::node::Event;
use crate::telemetry::Limit;

/// A silent stream says that it is alive at least this often; clients give up after three times as long.
const KEEP_ALIVE: Duration = Duration::from_secs(5);

pub(super) async fn serve(
    State(edge): State<Edge>,
) -> Result<Sse<impl Stream<Item = Result<sse::Event, Infallible>>>, ApiError> {
    let held =
        Held::new(edge.event_streams.clone(), 1, edge.config.limits.event_streams).ok_or_else(|| {
            edge.node.metrics().refuse(Limit::EventStreams);
            ApiError::overloaded("too many streams of events are open")
        })?;
    let (snapshot, later) = edge.node.events();
    // Silence would be idleness.
    let keep_alive = KEEP_ALIVE.min(edge.config.limits.idle_timeout / 3);
    let (stopping, is_admitted) = (edge.stopping.clone(), edge.gate.operator());
    let events = stream::once(async move { snapshot })
        .chain(stream::unfold(later, next))
        .take_while(move |_| future::ready(is_admitted()))
        .map(move |event| {
            // Counts for as long as the stream is open.
            let _ = &held;
            Ok(render(&event))
        })
        .take_until(async move { stopping.cancelled().await });
    Ok(Sse::new(events).keep_alive(KeepAlive::new().interval(keep_alive).text("alive")))
}

async fn next(mut receiver: broadcast::Receiver<Event>) -> Option<(Event, broadcast::Receiver<Event>)> {
    loop {
        match receiver.recv().await {
            Ok(event) => return Some((event, receiver)),
            // The ids show the gap.
            Err(RecvError::Lagged(_)) => {}
            Err(RecvError::Closed) => return None,
        }
    }
}

fn render(event: &Event) -> sse::Event {
    sse::Event::default().id(event.id.to_string()).event(event.kind).data(event.data.to_string())
}
