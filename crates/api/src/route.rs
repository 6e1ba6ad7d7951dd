//! The one table of routes: method, path, who may call, and what answers.
//!
//! An entry cannot be written without its access, and the router is built from the table alone.

use axum::Router;
use axum::handler::Handler;
use axum::middleware;
use axum::routing::{MethodFilter, MethodRouter, on};
use http::{Method, StatusCode};

use crate::Shared;
use crate::access::{Access, guard};
use crate::answer::Failure;
use crate::handlers::{
    builds, calls, changes, disk, engine, functions, git, keys, pushes, schedules, secrets, server,
    tokens, upload,
};

/// One route as it is declared, for tests and documents.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Route {
    /// The method.
    pub method: Method,
    /// The path; a part in braces stands for any one path segment.
    pub path: &'static str,
    /// Who may call it.
    pub access: Access,
}

/// Every route that the system host serves.
pub fn routes() -> Vec<Route> {
    table().into_iter().map(|(route, _)| route).collect()
}

type Entry = (Route, MethodRouter<Shared>);

fn entry<H, T>(method: Method, path: &'static str, access: Access, handler: H) -> Entry
where
    H: Handler<T, Shared>,
    T: 'static,
{
    let filter = match method {
        Method::POST => MethodFilter::POST,
        Method::PUT => MethodFilter::PUT,
        Method::DELETE => MethodFilter::DELETE,
        _ => MethodFilter::GET,
    };
    (Route { method, path, access }, on(filter, handler))
}

fn table() -> Vec<Entry> {
    use Access::{Admin, Anyone, Git, Known, OwnerInPath};
    const GET: Method = Method::GET;
    const PUT: Method = Method::PUT;
    const POST: Method = Method::POST;
    const DELETE: Method = Method::DELETE;
    vec![
        entry(GET, "/", Anyone, server::front),
        entry(GET, "/api/v1/server", Known, server::describe),
        entry(GET, "/api/v1/disk", Admin, disk::usage),
        entry(GET, "/api/v1/images", Admin, disk::images),
        entry(POST, "/api/v1/images/prune", Admin, disk::prune),
        entry(GET, "/api/v1/functions", Known, functions::list),
        entry(GET, "/api/v1/owners/{owner}/functions", OwnerInPath, functions::list_of_owner),
        entry(GET, "/api/v1/owners/{owner}/functions/{function}", OwnerInPath, functions::describe),
        entry(DELETE, "/api/v1/owners/{owner}/functions/{function}", OwnerInPath, changes::remove),
        entry(
            POST,
            "/api/v1/owners/{owner}/functions/{function}/rollback",
            OwnerInPath,
            changes::rollback,
        ),
        entry(
            GET,
            "/api/v1/owners/{owner}/functions/{function}/releases",
            OwnerInPath,
            functions::releases,
        ),
        entry(
            GET,
            "/api/v1/owners/{owner}/functions/{function}/logs",
            OwnerInPath,
            functions::logs,
        ),
        entry(GET, "/api/v1/owners/{owner}/secrets", OwnerInPath, secrets::list),
        entry(GET, "/api/v1/owners/{owner}/secrets/{name}", OwnerInPath, secrets::describe),
        entry(PUT, "/api/v1/owners/{owner}/secrets/{name}", OwnerInPath, secrets::set),
        entry(PUT, "/api/v1/owners/{owner}/secrets/{name}/items", OwnerInPath, secrets::set_items),
        entry(
            POST,
            "/api/v1/owners/{owner}/repositories/{repository}/secrets/diff",
            OwnerInPath,
            secrets::diff,
        ),
        entry(DELETE, "/api/v1/owners/{owner}/secrets/{name}", OwnerInPath, secrets::unset),
        entry(
            POST,
            "/api/v1/owners/{owner}/repositories/{repository}/push",
            OwnerInPath,
            upload::push,
        ),
        entry(GET, "/api/v1/pushes", Known, pushes::list),
        entry(GET, "/api/v1/pushes/{push}", Known, pushes::describe),
        entry(GET, "/api/v1/pushes/{push}/events", Known, pushes::events),
        entry(GET, "/api/v1/builds", Known, builds::list),
        entry(GET, "/api/v1/builds/{build}", Known, builds::describe),
        entry(GET, "/api/v1/builds/{build}/log", Known, builds::log),
        entry(GET, "/api/v1/calls", Known, calls::list),
        entry(GET, "/api/v1/calls/{call}", Known, calls::describe),
        entry(DELETE, "/api/v1/calls/{call}", Known, calls::discard),
        entry(GET, "/api/v1/calls/{call}/result", Known, calls::result),
        entry(POST, "/api/v1/calls/{call}/cancel", Known, calls::cancel),
        entry(POST, "/api/v1/calls/{call}/redrive", Known, calls::redrive),
        entry(GET, "/api/v1/schedules", Known, schedules::list),
        entry(GET, "/api/v1/replicas", Known, engine::replicas),
        entry(GET, "/api/v1/engine", Admin, engine::status),
        entry(POST, "/api/v1/dead-letters/redrive", Known, calls::redrive_all),
        entry(GET, "/api/v1/owners/{owner}/callback-key", OwnerInPath, calls::key_of_owner),
        entry(GET, "/api/v1/callback-key", Admin, calls::key_of_nobody),
        entry(GET, "/api/v1/owners", Admin, tokens::owners),
        entry(POST, "/api/v1/owners", Admin, tokens::create_owner),
        entry(GET, "/api/v1/tokens", Admin, tokens::list),
        entry(POST, "/api/v1/tokens", Admin, tokens::create),
        entry(DELETE, "/api/v1/tokens/{token}", Admin, tokens::revoke),
        entry(GET, "/v1/cert.pem", Anyone, keys::certificate),
        entry(POST, "/v1/verify", Known, keys::verify),
        entry(POST, "/v1/rotate", Known, keys::rotate),
        entry(GET, "/git/{owner}/{repository}/{*path}", Git, git::serve),
        entry(POST, "/git/{owner}/{repository}/{*path}", Git, git::serve),
    ]
}

/// Builds the router from the table and nothing else.
pub(crate) fn assemble(host: &Shared) -> Router {
    let mut router = Router::new();
    for (route, handler) in table() {
        let guarded = match route.access {
            // Git's guard is its handler: git wants answers of its own.
            Access::Anyone | Access::Git => handler,
            access => {
                let state = (access, Shared::clone(host));
                handler.route_layer(middleware::from_fn_with_state(state, guard))
            }
        };
        router = router.route(route.path, guarded);
    }
    router
        .fallback(async || Failure::absent("there is nothing at this path"))
        .method_not_allowed_fallback(async || {
            Failure::new(StatusCode::METHOD_NOT_ALLOWED, "this path has no such method")
        })
        .with_state(Shared::clone(host))
}
