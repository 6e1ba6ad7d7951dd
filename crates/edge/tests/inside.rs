//! The door for functions: the gateway and nothing else, whatever a request names.

#![allow(clippy::unwrap_used)]

#[path = "common/support.rs"]
mod support;

use std::net::Ipv4Addr;

use http::StatusCode;
use support::{Replica, endpoint, get, house_with_inside, known, owned, spec, text};
use updraft_edge::Inside;

#[tokio::test]
async fn a_function_reaches_functions_and_its_own_gateway_and_nothing_else_whatever_it_names() {
    let replica = Replica::http(|_| async { text("from the function") }).await;
    let gateway = axum::Router::new().fallback(|| async { "the gateway for functions" });
    let inside = Inside { address: Ipv4Addr::LOCALHOST.into(), gateway };
    let house = house_with_inside(|_| {}, |_| {}, Some(inside)).await;
    let end = endpoint("r", replica.address);
    house.engine.ready(spec("f"), &[&end]);
    house.engine.ready(owned("alice", "g"), &[&end]);
    known(&house, "f").await;
    for host in [
        "gateway.openfaas:8080",
        "gateway",
        "localhost",
        "127.0.0.1",
        "system.example.test",
        "alice.example.test",
        "elsewhere.example",
    ] {
        let answer = get(house.address, host, "/function/f").await;
        assert_eq!(answer.2, "from the function", "{host}");
        for path in ["/system/functions", "/git/alice/x", "/api/v1/owners", "/g", "/"] {
            let answer = get(house.address, host, path).await;
            assert_eq!(answer.2, "the gateway for functions", "{host}{path}");
        }
        let health = get(house.address, host, "/healthz").await;
        assert_eq!(health.0, StatusCode::OK, "{host}");
    }
}

#[tokio::test]
async fn the_door_for_functions_is_an_address_and_the_others_stay_as_they_are() {
    let gateway = axum::Router::new().fallback(|| async { "the gateway for functions" });
    let inside = Inside { address: Ipv4Addr::new(127, 0, 0, 2).into(), gateway };
    let house = house_with_inside(|_| {}, |_| {}, Some(inside)).await;
    assert_eq!(get(house.address, "localhost", "/system/functions").await.2, "gateway");
    assert_eq!(get(house.address, "system.example.test", "/").await.2, "system");
}
