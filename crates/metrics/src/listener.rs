//! `/metrics` on an address of its own, without a password: off unless the operator binds it, to
//! an address that only the scraper reaches.

use std::sync::Arc;

use axum::Router;
use axum::extract::State;
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use http::{StatusCode, header};
use prometheus_client::registry::Registry;
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;

use crate::{CONTENT_TYPE, encode};

/// Serves `/metrics` and `/healthz` on `listener` until `closing`; nothing else is there.
pub async fn serve(listener: TcpListener, registry: Arc<Registry>, closing: CancellationToken) {
    let serving =
        axum::serve(listener, router(registry)).with_graceful_shutdown(closing.cancelled_owned());
    if let Err(error) = serving.await {
        tracing::error!(%error, "the listener of the metrics ended");
    }
}

fn router(registry: Arc<Registry>) -> Router {
    Router::new()
        .route("/metrics", get(metrics))
        .route("/healthz", get(|| async { "OK" }))
        .with_state(registry)
}

async fn metrics(State(registry): State<Arc<Registry>>) -> Response {
    match encode(&registry) {
        Ok(text) => ([(header::CONTENT_TYPE, CONTENT_TYPE)], text).into_response(),
        Err(error) => {
            tracing::error!(%error, "the metrics could not be written");
            StatusCode::INTERNAL_SERVER_ERROR.into_response()
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use axum::body::Body;
    use http::Request;
    use http_body_util::BodyExt;
    use tower::ServiceExt;

    async fn ask(path: &str) -> (StatusCode, String, String) {
        ask_by("GET", path).await
    }

    async fn ask_by(method: &str, path: &str) -> (StatusCode, String, String) {
        let mut registry = Registry::default();
        crate::register_process(&mut registry);
        let request = Request::builder().method(method).uri(path).body(Body::empty()).unwrap();
        let answer = router(Arc::new(registry)).oneshot(request).await.unwrap();
        let kind = answer.headers().get(header::CONTENT_TYPE);
        let kind = kind.map_or("", |kind| kind.to_str().unwrap()).to_owned();
        let status = answer.status();
        let body = answer.into_body().collect().await.unwrap().to_bytes();
        (status, kind, String::from_utf8(body.to_vec()).unwrap())
    }

    #[tokio::test]
    async fn the_listener_serves_the_text_and_nothing_else() {
        let (status, kind, text) = ask("/metrics").await;
        assert_eq!((status, kind.as_str()), (StatusCode::OK, CONTENT_TYPE));
        assert!(text.contains("# TYPE process_resident_memory_bytes gauge"), "{text}");
        assert!(text.ends_with("# EOF\n"), "{text}");
        let (status, _, text) = ask("/healthz").await;
        assert_eq!((status, text.as_str()), (StatusCode::OK, "OK"));
        for path in ["/metrics", "/healthz"] {
            assert_eq!(ask_by("POST", path).await.0, StatusCode::METHOD_NOT_ALLOWED);
        }
        assert_eq!(ask("/system/functions").await.0, StatusCode::NOT_FOUND);
    }
}
