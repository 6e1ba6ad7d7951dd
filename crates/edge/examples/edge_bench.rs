//! Serves one function `f` whose single replica is a server started elsewhere, for measurements:
//!
//! ```text
//! edge_bench LISTEN UPSTREAM [THREADS]
//! edge_bench 127.0.0.1:9001 127.0.0.1:9000 1
//! wrk -t1 -c50 -d10 -H 'Host: localhost' http://127.0.0.1:9001/function/f
//! ```

#![allow(clippy::unwrap_used, clippy::print_stdout)]

#[path = "../tests/common/support.rs"]
mod support;

use std::net::SocketAddr;
use std::sync::Arc;

use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;
use updraft_edge::{Edge, EdgeLimits, EdgeParts, Root};
use updraft_engine::Engine;
use updraft_invoke::{InvokeOptions, Invoker};

async fn run(listen: SocketAddr, upstream: SocketAddr) {
    let engine = support::Double::new();
    engine.ready(support::owned("bench", "f"), &[&support::endpoint("r", upstream)]);
    engine.ready(support::spec("f"), &[&support::endpoint("r", upstream)]);
    let invoker = Invoker::new(engine as Arc<dyn Engine>, InvokeOptions::new("bench"));
    let edge = Edge::new(EdgeParts {
        invoker,
        gateway: axum::Router::new(),
        system: axum::Router::new(),
        root: Root::new("example.test").unwrap(),
        inside: None,
        limits: EdgeLimits::usual(),
    });
    let listener = TcpListener::bind(listen).await.unwrap();
    println!("ready: {}", listener.local_addr().unwrap());
    let serving = tokio::spawn(edge.serve(listener, CancellationToken::new()).unwrap());
    serving.await.unwrap();
}

fn main() {
    let mut arguments = std::env::args().skip(1);
    let listen = arguments.next().expect("LISTEN is missing").parse().unwrap();
    let upstream = arguments.next().expect("UPSTREAM is missing").parse().unwrap();
    let threads = arguments.next().map_or(1, |threads| threads.parse().unwrap());
    // No thread at all means everything on the main one.
    let mut runtime = if threads == 0 {
        tokio::runtime::Builder::new_current_thread()
    } else {
        tokio::runtime::Builder::new_multi_thread()
    };
    runtime.worker_threads(threads.max(1)).enable_all();
    runtime.build().unwrap().block_on(run(listen, upstream));
}
