//! `git push` itself, by the real program against the real endpoint.

use std::convert::Infallible;
use std::process::{Command, Output};
use std::sync::Arc;

use http_body_util::BodyExt as _;
use hyper_util::rt::{TokioExecutor, TokioIo};
use updraft_pipeline::GitSink;
use updraft_source::git::{GitRequest, GitServer, GitServerOptions};

use crate::builder::OnBuild;
use crate::world::{World, owner, repository, stack};

const DOCKERFILE: &str = "FROM scratch\n";

/// Serves the git endpoint of a world; gives its address.
fn serve(world: &World) -> String {
    let options = GitServerOptions::new(world.folder.path().join("git"));
    let sink = Arc::new(GitSink::new(world.pipeline()));
    world.run(async {
        let server = GitServer::new(options).await.unwrap();
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        tokio::spawn(async move {
            loop {
                let (stream, _) = listener.accept().await.unwrap();
                let (server, sink) = (server.clone(), sink.clone());
                let service = hyper::service::service_fn(move |request: http::Request<_>| {
                    let (server, sink) = (server.clone(), sink.clone());
                    async move { Ok::<_, Infallible>(answer(&server, sink, request).await) }
                });
                tokio::spawn(async move {
                    let builder =
                        hyper_util::server::conn::auto::Builder::new(TokioExecutor::new());
                    drop(builder.serve_connection(TokioIo::new(stream), service).await);
                });
            }
        });
        format!("http://{address}")
    })
}

async fn answer(
    server: &GitServer,
    sink: Arc<GitSink>,
    request: http::Request<hyper::body::Incoming>,
) -> http::Response<updraft_source::git::GitBody> {
    // `/alice/shop.git/<path>`
    let parts: Vec<_> = request.uri().path().splitn(4, '/').map(str::to_owned).collect();
    let name = parts[2].strip_suffix(".git").unwrap();
    let request = GitRequest {
        owner: owner(&parts[1]),
        repository: repository(name),
        path: parts[3].clone(),
        request: request.map(|body| body.map_err(Into::into).boxed_unsync()),
    };
    server.handle(request, sink).await
}

/// Commits and pushes `main` with the real git; gives what it printed.
fn git_push(world: &World, address: &str, files: &[(&str, &str)]) -> Output {
    let clone = world.commit_only("alice", "shop", files);
    Command::new("git")
        .args(["push", &format!("{address}/alice/shop.git"), "HEAD:main"])
        .current_dir(clone)
        .env("GIT_CONFIG_GLOBAL", "/dev/null")
        .env("GIT_CONFIG_SYSTEM", "/dev/null")
        .output()
        .unwrap()
}

#[test]
fn the_story_stands_in_the_pushing_terminal_and_its_end_is_gits_exit_status() {
    let world = World::new();
    let address = serve(&world);
    let stack = stack(&["hello"]);
    let pushed =
        git_push(&world, &address, &[("stack.yml", &stack), ("hello/Dockerfile", DOCKERFILE)]);
    let text = String::from_utf8_lossy(&pushed.stderr);
    assert!(pushed.status.success(), "{text}");
    for line in [
        "remote: 1 function: hello (dockerfile) build",
        "remote: hello | STEP 1/2: FROM scratch",
        "remote: hello v1 is live: http://alice.localhost:8080/hello",
        "remote: 1 function live (",
    ] {
        assert!(text.contains(line), "{line} is not in:\n{text}");
    }

    world.builder.on_build("hello", OnBuild::Fail(vec!["it is broken".to_owned()]));
    let pushed = git_push(&world, &address, &[("hello/m", "2")]);
    let text = String::from_utf8_lossy(&pushed.stderr);
    assert!(!pushed.status.success(), "{text}");
    assert!(text.contains("remote: hello |   it is broken"), "{text}");
    assert!(text.contains("0 functions live, 1 failed: hello (build)"), "{text}");
    assert_eq!(world.live("hello"), Some(1));

    // The commit is there all the same: pushing it again is a new attempt with another commit.
    world.builder.succeed("hello");
    let pushed = git_push(&world, &address, &[]);
    assert!(pushed.status.success(), "{}", String::from_utf8_lossy(&pushed.stderr));
    assert_eq!(world.live("hello"), Some(2));
}
