//! The one table of routes: method, path, who may call, and what answers.
//!
//! A route is made by [`route`], which takes the access with everything else, so that there is no
//! way to serve a path without saying who may call it.

use std::convert::Infallible;
use std::sync::Arc;

use axum::Router;
use axum::handler::Handler;
use axum::middleware;
use axum::routing::{MethodFilter, MethodRouter, on};
use http::{Method, Uri};

use crate::GatewayParts;
use crate::access::{require_account, require_admin};
use crate::answer;
use crate::handlers::{alert, calls, functions, info, logs, namespaces, secrets};
use crate::requests::count;

/// Who may call a route.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Access {
    /// Everybody, without credentials.
    Anyone,
    /// The administrator.
    Admin,
    /// The administrator and owners; the handler tells what is whose.
    Account,
}

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

/// Every route that the gateway serves.
pub fn routes() -> Vec<Route> {
    table().into_iter().map(|(route, _)| route).collect()
}

type Entry = (Route, MethodRouter<Arc<GatewayParts>, Infallible>);

fn route<H, T>(
    filter: MethodFilter,
    method: Method,
    path: &'static str,
    access: Access,
    handler: H,
) -> Entry
where
    H: Handler<T, Arc<GatewayParts>>,
    T: 'static,
{
    (Route { method, path, access }, on(filter, handler))
}

fn get<H: Handler<T, Arc<GatewayParts>>, T: 'static>(
    path: &'static str,
    access: Access,
    handler: H,
) -> Entry {
    route(MethodFilter::GET, Method::GET, path, access, handler)
}

fn post<H: Handler<T, Arc<GatewayParts>>, T: 'static>(
    path: &'static str,
    access: Access,
    handler: H,
) -> Entry {
    route(MethodFilter::POST, Method::POST, path, access, handler)
}

fn put<H: Handler<T, Arc<GatewayParts>>, T: 'static>(
    path: &'static str,
    access: Access,
    handler: H,
) -> Entry {
    route(MethodFilter::PUT, Method::PUT, path, access, handler)
}

fn delete<H: Handler<T, Arc<GatewayParts>>, T: 'static>(
    path: &'static str,
    access: Access,
    handler: H,
) -> Entry {
    route(MethodFilter::DELETE, Method::DELETE, path, access, handler)
}

fn table() -> Vec<Entry> {
    use Access::{Account, Admin, Anyone};
    vec![
        get("/healthz", Anyone, info::health),
        get("/", Anyone, info::front),
        get("/ui", Anyone, info::portal),
        get("/ui/", Anyone, info::portal),
        get("/ui/{*page}", Anyone, info::portal),
        get("/metrics", Admin, info::metrics),
        // Open as calls are; a private function asks its callers itself.
        post("/async-function/{name}", Anyone, calls::submit),
        post("/async-function/{name}/", Anyone, calls::submit),
        post("/async-function/{name}/{*path}", Anyone, calls::submit),
        delete("/async-function/{name}", Account, calls::cancel),
        post("/system/alert", Admin, alert::heed),
        get("/system/openapi.json", Anyone, info::openapi),
        get("/system/info", Admin, info::info),
        get("/system/functions", Admin, functions::list),
        post("/system/functions", Admin, functions::create),
        put("/system/functions", Admin, functions::update),
        delete("/system/functions", Admin, functions::remove),
        get("/system/function/{name}", Admin, functions::describe),
        post("/system/scale-function/{name}", Admin, functions::scale),
        get("/system/logs", Admin, logs::stream),
        get("/system/secrets", Admin, secrets::list),
        post("/system/secrets", Admin, secrets::create),
        put("/system/secrets", Admin, secrets::update),
        delete("/system/secrets", Admin, secrets::remove),
        get("/system/namespaces", Admin, namespaces::list),
        // The clients of OpenFaaS create with an empty name in the path and the real one in the body.
        post("/system/namespace/", Admin, namespaces::create),
        put("/system/namespace/", Admin, namespaces::update),
        delete("/system/namespace/", Admin, namespaces::remove),
        post("/system/namespace/{namespace}", Admin, namespaces::create),
        get("/system/namespace/{namespace}", Admin, namespaces::describe),
        put("/system/namespace/{namespace}", Admin, namespaces::update),
        delete("/system/namespace/{namespace}", Admin, namespaces::remove),
    ]
}

/// Builds the router from the table and nothing else.
pub(crate) fn assemble(parts: Arc<GatewayParts>) -> Router {
    let mut router = Router::new();
    for (route, handler) in table() {
        let counted = (parts.requests.clone(), route.path);
        let guarded = match route.access {
            Access::Anyone => handler,
            Access::Admin => handler
                .route_layer(middleware::from_fn_with_state(Arc::clone(&parts), require_admin)),
            Access::Account => handler
                .route_layer(middleware::from_fn_with_state(Arc::clone(&parts), require_account)),
        };
        // Refused requests count too.
        let counted = guarded.route_layer(middleware::from_fn_with_state(counted, count));
        router = router.route(route.path, counted);
    }
    router.fallback(|uri: Uri| async move { answer::not_served(&uri) }).with_state(parts)
}
