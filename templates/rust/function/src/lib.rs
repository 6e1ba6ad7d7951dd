use updraft::{Request, Response};

/// Answers one request.
pub fn handle(request: Request) -> Response {
    let name = request.parameter("name").unwrap_or_else(|| "world".to_owned());
    Response::text(format!("Hello, {}!\n", name))
}
