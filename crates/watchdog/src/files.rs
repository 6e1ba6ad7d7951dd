//! Mode static: the files of one folder, and nothing outside it.
//!
//! The kernel itself keeps every step of a path inside the folder (`openat2` with
//! `RESOLVE_BENEATH`), so neither `..` nor a symbolic link leads out, also while files change.

use std::fs::{File, Metadata};
use std::io::{self, Read as _, Seek as _, SeekFrom};
use std::os::fd::OwnedFd;
use std::os::unix::ffi::{OsStrExt as _, OsStringExt as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use bytes::{Bytes, BytesMut};
use futures_util::StreamExt as _;
use futures_util::stream;
use http::header::{self, HeaderMap, HeaderValue};
use http::{Method, Request, Response, StatusCode};
use nix::errno::Errno;
use nix::fcntl::{OFlag, OpenHow, ResolveFlag, openat2};
use nix::sys::stat::Mode;
use tokio::io::AsyncReadExt as _;

use crate::body::Body;
use crate::percent::{decode, encode_segment};
use crate::server::{plain, status};

const CHUNK: u64 = 64 * 1024;
/// Most entries of a folder that are listed.
const MAX_LISTED: usize = 10_000;

/// The folder that is served.
pub(crate) struct Files {
    root: Arc<Root>,
}

struct Root {
    path: PathBuf,
    folder: File,
}

/// What a path turned out to be.
enum Found {
    File(File, Metadata, &'static str),
    Listing(String),
}

impl Files {
    /// Opens the folder.
    pub(crate) fn open(path: &Path) -> io::Result<Self> {
        let folder = std::fs::OpenOptions::new()
            .read(true)
            .custom_flags(OFlag::O_DIRECTORY.bits())
            .open(path)?;
        Ok(Self { root: Arc::new(Root { path: path.canonicalize()?, folder }) })
    }

    /// Answers one request.
    pub(crate) async fn serve<B>(&self, request: &Request<B>) -> Response<Body> {
        if !matches!(*request.method(), Method::GET | Method::HEAD) {
            let mut response = plain(StatusCode::METHOD_NOT_ALLOWED, "only GET and HEAD\n");
            response.headers_mut().insert(header::ALLOW, HeaderValue::from_static("GET, HEAD"));
            return response;
        }
        let raw = request.uri().path();
        if raw.ends_with("/index.html") {
            return redirect("./", request.uri().query());
        }
        let Some(relative) = relative_path(raw) else {
            return not_found();
        };
        let root = Arc::clone(&self.root);
        let slash = raw.ends_with('/');
        let looked_up = tokio::task::spawn_blocking(move || root.find(&relative, slash)).await;
        match looked_up {
            Ok(Ok(Ok(Found::File(file, metadata, kind)))) => {
                send_file(request.headers(), file, &metadata, kind)
            }
            Ok(Ok(Ok(Found::Listing(html)))) => {
                let mut response = Response::new(Body::full(html));
                response.headers_mut().insert(
                    header::CONTENT_TYPE,
                    HeaderValue::from_static("text/html; charset=utf-8"),
                );
                response
            }
            Ok(Ok(Err(Misplaced::FolderWithoutSlash))) => {
                redirect(&format!("{}/", last_segment(raw)), request.uri().query())
            }
            Ok(Ok(Err(Misplaced::FileWithSlash))) => {
                let name = last_segment(raw.trim_end_matches('/'));
                redirect(&format!("../{name}"), request.uri().query())
            }
            Ok(Err(error)) if error.kind() == io::ErrorKind::PermissionDenied => {
                plain(StatusCode::FORBIDDEN, "403 Forbidden\n")
            }
            Ok(Err(_)) => not_found(),
            Err(_panicked) => status(StatusCode::INTERNAL_SERVER_ERROR),
        }
    }
}

/// A path whose last slash says something else than the file system.
enum Misplaced {
    FolderWithoutSlash,
    FileWithSlash,
}

impl Root {
    fn find(&self, relative: &Path, slash: bool) -> io::Result<Result<Found, Misplaced>> {
        let file = self.open(relative)?;
        let metadata = file.metadata()?;
        if metadata.is_file() {
            if slash {
                return Ok(Err(Misplaced::FileWithSlash));
            }
            return found_file(file, metadata, relative).map(Ok);
        }
        if !metadata.is_dir() {
            return Err(io::ErrorKind::NotFound.into());
        }
        if !slash {
            return Ok(Err(Misplaced::FolderWithoutSlash));
        }
        let index = relative.join("index.html");
        if let Ok(file) = self.open(&index) {
            let metadata = file.metadata()?;
            if metadata.is_file() {
                return found_file(file, metadata, &index).map(Ok);
            }
        }
        listing(file.into()).map(|html| Ok(Found::Listing(html)))
    }

    fn open(&self, relative: &Path) -> io::Result<File> {
        // Without O_NONBLOCK a named pipe in the folder would hold the thread for ever.
        let flags = OFlag::O_RDONLY | OFlag::O_CLOEXEC | OFlag::O_NONBLOCK | OFlag::O_NOCTTY;
        let how = OpenHow::new()
            .flags(flags)
            .mode(Mode::empty())
            .resolve(ResolveFlag::RESOLVE_BENEATH | ResolveFlag::RESOLVE_NO_MAGICLINKS);
        match openat2(&self.folder, relative, how) {
            Ok(descriptor) => Ok(File::from(descriptor)),
            // Old kernels lack the call and old seccomp profiles refuse it.
            Err(Errno::ENOSYS | Errno::EPERM) => self.open_checked(relative, flags),
            Err(error) => Err(error.into()),
        }
    }

    /// The second best way: resolve first, then see that the result is inside.
    fn open_checked(&self, relative: &Path, flags: OFlag) -> io::Result<File> {
        let resolved = self.path.join(relative).canonicalize()?;
        if !resolved.starts_with(&self.path) {
            return Err(io::ErrorKind::NotFound.into());
        }
        std::fs::OpenOptions::new()
            .read(true)
            .custom_flags((flags | OFlag::O_NOFOLLOW).bits())
            .open(resolved)
    }
}

fn found_file(mut file: File, metadata: Metadata, path: &Path) -> io::Result<Found> {
    let kind = match by_extension(path) {
        Some(kind) => kind,
        None => sniff(&mut file)?,
    };
    Ok(Found::File(file, metadata, kind))
}

/// The decoded path below the root; `None` when it could only lead out or cannot exist.
fn relative_path(raw: &str) -> Option<PathBuf> {
    let mut path = PathBuf::from(".");
    for segment in decode(raw).split(|&byte| byte == b'/') {
        match segment {
            b"" | b"." => {}
            b".." => return None,
            name if name.contains(&0) => return None,
            name => path.push(std::ffi::OsStr::from_bytes(name)),
        }
    }
    Some(path)
}

fn last_segment(path: &str) -> &str {
    path.rsplit('/').next().unwrap_or_default()
}

fn not_found() -> Response<Body> {
    plain(StatusCode::NOT_FOUND, "404 page not found\n")
}

fn redirect(to: &str, query: Option<&str>) -> Response<Body> {
    let to = query.map_or_else(|| to.to_owned(), |query| format!("{to}?{query}"));
    let mut response = status(StatusCode::MOVED_PERMANENTLY);
    if let Ok(to) = HeaderValue::try_from(to) {
        response.headers_mut().insert(header::LOCATION, to);
    }
    response
}

fn listing(folder: OwnedFd) -> io::Result<String> {
    let mut names = Vec::new();
    let mut folder = nix::dir::Dir::from_fd(folder)?;
    for entry in folder.iter().take(MAX_LISTED) {
        let entry = entry?;
        let name = entry.file_name().to_bytes();
        if name == b"." || name == b".." {
            continue;
        }
        let mut name = name.to_vec();
        if entry.file_type() == Some(nix::dir::Type::Directory) {
            name.push(b'/');
        }
        names.push(name);
    }
    names.sort();
    let mut html = String::from(
        "<!doctype html>\n<meta name=\"viewport\" content=\"width=device-width\">\n<pre>\n",
    );
    for name in names {
        let (bare, slash) = match name.strip_suffix(b"/") {
            Some(bare) => (bare, "/"),
            None => (name.as_slice(), ""),
        };
        html.push_str("<a href=\"./");
        html.push_str(&encode_segment(bare));
        html.push_str(slash);
        html.push_str("\">");
        escape(&std::ffi::OsString::from_vec(name).to_string_lossy(), &mut html);
        html.push_str("</a>\n");
    }
    html.push_str("</pre>\n");
    Ok(html)
}

fn escape(text: &str, html: &mut String) {
    for character in text.chars() {
        match character {
            '<' => html.push_str("&lt;"),
            '>' => html.push_str("&gt;"),
            '&' => html.push_str("&amp;"),
            '"' => html.push_str("&#34;"),
            '\'' => html.push_str("&#39;"),
            other => html.push(other),
        }
    }
}

fn send_file(
    request: &HeaderMap,
    file: File,
    metadata: &Metadata,
    kind: &'static str,
) -> Response<Body> {
    let length = metadata.len();
    let modified = metadata.modified().ok().and_then(whole_seconds);
    let date = |name| {
        let value = request.get(name)?.to_str().ok()?;
        httpdate::parse_http_date(value).ok()
    };
    let mut response = status(StatusCode::OK);
    let headers = response.headers_mut();
    if let Some(modified) = modified {
        if let Ok(value) = HeaderValue::try_from(httpdate::fmt_http_date(modified)) {
            headers.insert(header::LAST_MODIFIED, value);
        }
        if date(header::IF_MODIFIED_SINCE).is_some_and(|since| modified <= since) {
            *response.status_mut() = StatusCode::NOT_MODIFIED;
            return response;
        }
    }
    headers.insert(header::ACCEPT_RANGES, HeaderValue::from_static("bytes"));
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static(kind));
    // A part is only good if it belongs to the version that the caller has.
    let same_version = !request.contains_key(header::IF_RANGE)
        || date(header::IF_RANGE).is_some_and(|version| Some(version) == modified);
    let range = request
        .get(header::RANGE)
        .filter(|_| same_version)
        .and_then(|value| parse_range(value.to_str().ok()?, length));
    let (start, size) = match range {
        None => (0, length),
        Some(Ok((start, size))) => {
            let text = format!("bytes {start}-{}/{length}", start + size - 1);
            if let Ok(value) = HeaderValue::try_from(text) {
                headers.insert(header::CONTENT_RANGE, value);
            }
            *response.status_mut() = StatusCode::PARTIAL_CONTENT;
            (start, size)
        }
        Some(Err(Unsatisfiable)) => {
            let mut response = plain(StatusCode::RANGE_NOT_SATISFIABLE, "invalid range\n");
            if let Ok(value) = HeaderValue::try_from(format!("bytes */{length}")) {
                response.headers_mut().insert(header::CONTENT_RANGE, value);
            }
            return response;
        }
    };
    response.map(|_| Body::stream(read_part(file, start, size), Some(size)))
}

/// File times have nanoseconds, HTTP dates have not.
fn whole_seconds(time: SystemTime) -> Option<SystemTime> {
    let since = time.duration_since(SystemTime::UNIX_EPOCH).ok()?;
    Some(SystemTime::UNIX_EPOCH + Duration::from_secs(since.as_secs()))
}

/// A range that begins behind the end.
#[derive(Debug, PartialEq, Eq)]
struct Unsatisfiable;

/// Start and size of the one range asked for; `None` means to send all, which is always allowed
/// and is what several ranges and malformed ones get.
fn parse_range(text: &str, length: u64) -> Option<Result<(u64, u64), Unsatisfiable>> {
    let (first, last) = text.strip_prefix("bytes=")?.trim().split_once('-')?;
    let (first, last) = (first.trim(), last.trim());
    let number = |text: &str| {
        Some(text)
            .filter(|text| text.bytes().all(|byte| byte.is_ascii_digit()))
            .and_then(|text| text.parse::<u64>().ok())
    };
    if first.is_empty() {
        let size = number(last)?.min(length);
        return Some(if size == 0 { Err(Unsatisfiable) } else { Ok((length - size, size)) });
    }
    let first = number(first)?;
    let last = if last.is_empty() { u64::MAX } else { number(last)? };
    if last < first {
        return None;
    }
    if first >= length {
        return Some(Err(Unsatisfiable));
    }
    Some(Ok((first, last.min(length - 1) - first + 1)))
}

/// Reads `size` bytes from `start`; a file that has shrunk meanwhile breaks the answer off.
fn read_part(
    mut file: File,
    start: u64,
    size: u64,
) -> stream::BoxStream<'static, io::Result<Bytes>> {
    let sought = file.seek(SeekFrom::Start(start)).map(|_| tokio::fs::File::from_std(file));
    stream::try_unfold((Some(sought), size), |(source, left)| async move {
        let Some(source) = source.filter(|_| left > 0) else {
            return Ok(None);
        };
        let mut file = source?;
        let mut buffer = BytesMut::with_capacity(usize::try_from(left.min(CHUNK)).unwrap_or(0));
        let mut part = (&mut file).take(left.min(CHUNK));
        if part.read_buf(&mut buffer).await? == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        let left = left - buffer.len() as u64;
        Ok(Some((buffer.freeze(), (Some(Ok(file)), left))))
    })
    .boxed()
}

fn by_extension(path: &Path) -> Option<&'static str> {
    let extension = path.extension()?.to_str()?.to_ascii_lowercase();
    Some(match extension.as_str() {
        "html" | "htm" => "text/html; charset=utf-8",
        "css" => "text/css; charset=utf-8",
        "js" | "mjs" => "text/javascript; charset=utf-8",
        "json" | "map" => "application/json",
        "txt" | "log" => "text/plain; charset=utf-8",
        "md" => "text/markdown; charset=utf-8",
        "csv" => "text/csv; charset=utf-8",
        "xml" => "text/xml; charset=utf-8",
        "svg" => "image/svg+xml",
        "png" => "image/png",
        "jpg" | "jpeg" => "image/jpeg",
        "gif" => "image/gif",
        "webp" => "image/webp",
        "avif" => "image/avif",
        "ico" => "image/x-icon",
        "woff" => "font/woff",
        "woff2" => "font/woff2",
        "ttf" => "font/ttf",
        "otf" => "font/otf",
        "pdf" => "application/pdf",
        "wasm" => "application/wasm",
        "webmanifest" => "application/manifest+json",
        "zip" => "application/zip",
        "gz" => "application/gzip",
        "mp3" => "audio/mpeg",
        "ogg" => "audio/ogg",
        "wav" => "audio/wav",
        "mp4" => "video/mp4",
        "webm" => "video/webm",
        _ => return None,
    })
}

/// Text if its beginning reads like text, otherwise bytes; never HTML, which a browser would run.
fn sniff(file: &mut File) -> io::Result<&'static str> {
    let mut beginning = Vec::with_capacity(512);
    file.take(512).read_to_end(&mut beginning)?;
    let text = match std::str::from_utf8(&beginning) {
        Ok(_) => true,
        // The cut may fall inside a character.
        Err(error) => error.error_len().is_none(),
    };
    let control = |byte: &u8| *byte < 0x20 && !b"\t\n\r\x0c\x1b".contains(byte);
    Ok(if text && !beginning.iter().any(control) {
        "text/plain; charset=utf-8"
    } else {
        "application/octet-stream"
    })
}

#[cfg(test)]
#[path = "files_tests.rs"]
mod tests;
