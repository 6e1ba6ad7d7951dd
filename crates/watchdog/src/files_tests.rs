//! Static files, claim by claim.

use super::*;
use http_body_util::BodyExt as _;

async fn get(
    files: &Files,
    path: &str,
    headers: &[(&str, &str)],
) -> (StatusCode, HeaderMap, Bytes) {
    let mut request = Request::get(path);
    for (name, value) in headers {
        request = request.header(*name, *value);
    }
    let response = files.serve(&request.body(()).unwrap()).await;
    let (parts, body) = response.into_parts();
    (parts.status, parts.headers, body.collect().await.unwrap().to_bytes())
}

fn site() -> (tempfile::TempDir, Files) {
    let folder = tempfile::tempdir().unwrap();
    let root = folder.path().join("public");
    std::fs::create_dir_all(root.join("sub/deeper")).unwrap();
    std::fs::create_dir(root.join("list")).unwrap();
    std::fs::write(root.join("index.html"), "<p>home").unwrap();
    std::fs::write(root.join("sub/index.html"), "<p>sub").unwrap();
    std::fs::write(root.join("digits"), "0123456789").unwrap();
    std::fs::write(root.join("style.css"), "p{}").unwrap();
    std::fs::write(root.join("data"), [0_u8, 1, 2]).unwrap();
    std::fs::write(root.join("list/<b>&\"x"), "").unwrap();
    std::fs::create_dir(root.join("list/folder")).unwrap();
    std::fs::write(folder.path().join("secret"), "secret").unwrap();
    std::os::unix::fs::symlink("../secret", root.join("out")).unwrap();
    std::os::unix::fs::symlink(folder.path().join("secret"), root.join("absolute")).unwrap();
    std::os::unix::fs::symlink("..", root.join("up")).unwrap();
    std::os::unix::fs::symlink("style.css", root.join("inside")).unwrap();
    nix::unistd::mkfifo(&root.join("fifo"), Mode::S_IRWXU).unwrap();
    let files = Files::open(&root).unwrap();
    (folder, files)
}

#[tokio::test]
async fn index_html_answers_for_its_folder_and_is_redirected_to_it() {
    let (_folder, files) = site();
    let (status, headers, body) = get(&files, "/", &[]).await;
    assert_eq!((status, &body[..]), (StatusCode::OK, &b"<p>home"[..]));
    assert_eq!(headers[header::CONTENT_TYPE], "text/html; charset=utf-8");
    assert_eq!(get(&files, "/sub/", &[]).await.2, "<p>sub");
    let (status, headers, _) = get(&files, "/sub/index.html?q=1", &[]).await;
    assert_eq!(status, StatusCode::MOVED_PERMANENTLY);
    assert_eq!(headers[header::LOCATION], "./?q=1");
    assert_eq!(get(&files, "/sub", &[]).await.1[header::LOCATION], "sub/");
    assert_eq!(get(&files, "/digits/", &[]).await.1[header::LOCATION], "../digits");
}

#[tokio::test]
async fn nothing_outside_the_folder_is_ever_served() {
    let (_folder, files) = site();
    for path in [
        "/../secret",
        "/%2e%2e/secret",
        "/sub/../../secret",
        "/..%2fsecret",
        "/out",
        "/absolute",
        "/up/secret",
        "/up/public/digits",
        "/nul%00",
        "//../secret",
        "/fifo",
        "/missing",
    ] {
        let (status, _, body) = get(&files, path, &[]).await;
        assert_eq!(status, StatusCode::NOT_FOUND, "{path}");
        assert!(!body.windows(6).any(|window| window == b"secret"), "{path}");
    }
    assert_eq!(get(&files, "/inside", &[]).await.2, "p{}");
}

#[tokio::test]
async fn the_way_for_old_kernels_does_not_lead_out_either() {
    let (_folder, files) = site();
    let open =
        |path: &str| files.root.open_checked(Path::new(path), OFlag::O_CLOEXEC | OFlag::O_NONBLOCK);
    assert!(open("./digits").is_ok());
    assert!(open("./inside").is_ok());
    for path in ["./out", "./absolute", "./up/secret"] {
        assert!(open(path).is_err(), "{path}");
    }
}

#[tokio::test]
async fn listings_are_sorted_and_escaped() {
    let (_folder, files) = site();
    let (status, _, body) = get(&files, "/list/", &[]).await;
    let html = String::from_utf8(body.to_vec()).unwrap();
    assert_eq!(status, StatusCode::OK);
    assert!(html.contains("<a href=\"./%3Cb%3E%26%22x\">&lt;b&gt;&amp;&#34;x</a>\n<a href=\"./folder/\">folder/</a>"), "{html}");
}

#[tokio::test]
async fn ranges_give_parts() {
    let (_folder, files) = site();
    for (range, expected, content_range) in [
        ("bytes=0-3", "0123", "bytes 0-3/10"),
        ("bytes=7-", "789", "bytes 7-9/10"),
        ("bytes=-2", "89", "bytes 8-9/10"),
        ("bytes=8-99", "89", "bytes 8-9/10"),
    ] {
        let (status, headers, body) = get(&files, "/digits", &[("range", range)]).await;
        assert_eq!((status, &body[..]), (StatusCode::PARTIAL_CONTENT, expected.as_bytes()));
        assert_eq!(headers[header::CONTENT_RANGE], content_range);
    }
    let (status, headers, _) = get(&files, "/digits", &[("range", "bytes=10-")]).await;
    assert_eq!(status, StatusCode::RANGE_NOT_SATISFIABLE);
    assert_eq!(headers[header::CONTENT_RANGE], "bytes */10");
    for whole in ["bytes=0-1,3-4", "bytes=5-2", "lines=1-2", "bytes=x"] {
        let (status, _, body) = get(&files, "/digits", &[("range", whole)]).await;
        assert_eq!((status, body.len()), (StatusCode::OK, 10), "{whole}");
    }
    let stale = [("range", "bytes=0-3"), ("if-range", "Sun, 06 Nov 1994 08:49:37 GMT")];
    assert_eq!(get(&files, "/digits", &stale).await.0, StatusCode::OK);
}

#[tokio::test]
async fn an_unchanged_file_is_not_sent_again() {
    let (_folder, files) = site();
    let (_, headers, _) = get(&files, "/digits", &[]).await;
    let modified = headers[header::LAST_MODIFIED].to_str().unwrap().to_owned();
    let (status, _, body) = get(&files, "/digits", &[("if-modified-since", &modified)]).await;
    assert_eq!((status, body.len()), (StatusCode::NOT_MODIFIED, 0));
    let old = [("if-modified-since", "Sun, 06 Nov 1994 08:49:37 GMT")];
    assert_eq!(get(&files, "/digits", &old).await.0, StatusCode::OK);
}

#[tokio::test]
async fn types_come_from_extensions_and_unknown_ones_are_text_or_bytes() {
    let (_folder, files) = site();
    for (path, expected) in [
        ("/style.css", "text/css; charset=utf-8"),
        ("/digits", "text/plain; charset=utf-8"),
        ("/data", "application/octet-stream"),
    ] {
        assert_eq!(get(&files, path, &[]).await.1[header::CONTENT_TYPE], expected);
    }
}

#[tokio::test]
async fn only_get_and_head_are_answered() {
    let (_folder, files) = site();
    let request = Request::post("/").body(()).unwrap();
    assert_eq!(files.serve(&request).await.status(), StatusCode::METHOD_NOT_ALLOWED);
    let request = Request::head("/digits").body(()).unwrap();
    assert_eq!(files.serve(&request).await.status(), StatusCode::OK);
}
