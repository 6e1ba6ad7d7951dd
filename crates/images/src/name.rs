//! What a written image name may mean in the store.
//!
//! People write `functions/alpine:latest`; the store knows images by full names such as
//! `docker.io/functions/alpine:latest`. What a caller wrote is never rewritten for him; this
//! module only says where to look.

use std::net::IpAddr;

use updraft_model::ImageRef;

const DEFAULT_TAG: &str = "latest";
const DEFAULT_REGISTRY: &str = "docker.io";

/// The full names, with tag, under which the store may hold `image`, best first. A name without
/// a registry means a local image before one of Docker's registry.
pub(crate) fn candidates(image: &ImageRef) -> Vec<String> {
    repositories(image).iter().map(|name| format!("{name}:{}", tag(image))).collect()
}

/// Where a registry would have `image`, best first; nothing for names that only exist here.
pub(crate) fn remote_candidates(image: &ImageRef) -> Vec<String> {
    let end = match image.digest() {
        Some(digest) => format!("@{digest}"),
        None => format!(":{}", tag(image)),
    };
    repositories(image)
        .iter()
        .filter(|name| !name.starts_with("localhost/"))
        .take(1)
        .map(|name| format!("{name}{end}"))
        .collect()
}

/// Whether a full name means a registry that only this machine reaches.
pub(crate) fn is_on_loopback(name: &str) -> bool {
    let host = name.split('/').next().unwrap_or_default();
    let host = match host.strip_prefix('[') {
        Some(rest) => rest.split(']').next().unwrap_or_default(),
        None => host.split(':').next().unwrap_or_default(),
    };
    host == "localhost" || host.parse::<IpAddr>().is_ok_and(|address| address.is_loopback())
}

/// The full name given to an image that an archive or a build calls `image`.
pub(crate) fn stored(image: &ImageRef) -> String {
    let names = repositories(image);
    // With a host there is one name; without, archives mean Docker's registry.
    let name = names.get(1).or_else(|| names.first()).cloned().unwrap_or_default();
    format!("{name}:{}", tag(image))
}

fn tag(image: &ImageRef) -> &str {
    image.tag().unwrap_or(DEFAULT_TAG)
}

fn repositories(image: &ImageRef) -> Vec<String> {
    let name = image.name();
    match image.host() {
        Some("docker.io" | "index.docker.io") => {
            let path = name.split_once('/').map_or(name, |(_, path)| path);
            vec![official(path)]
        }
        Some(_) => vec![name.to_owned()],
        None => vec![format!("localhost/{name}"), official(name)],
    }
}

/// A path of Docker's registry, where one without a folder lies in `library/`.
fn official(path: &str) -> String {
    if path.contains('/') {
        format!("{DEFAULT_REGISTRY}/{path}")
    } else {
        format!("{DEFAULT_REGISTRY}/library/{path}")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(written: &str, expected: &[&str]) {
        assert_eq!(candidates(&written.parse().unwrap()), expected, "{written}");
    }

    #[test]
    fn a_short_name_is_looked_for_here_first_and_then_as_docker_means_it() {
        check("x:1", &["localhost/x:1", "docker.io/library/x:1"]);
        check(
            "functions/alpine",
            &["localhost/functions/alpine:latest", "docker.io/functions/alpine:latest"],
        );
    }

    #[test]
    fn a_full_name_means_itself_only() {
        check("localhost/x:1", &["localhost/x:1"]);
        check("ghcr.io/a/b:2", &["ghcr.io/a/b:2"]);
        check("docker.io/alpine", &["docker.io/library/alpine:latest"]);
        check("registry:5000/x", &["registry:5000/x:latest"]);
    }

    #[test]
    fn names_of_this_machine_are_never_asked_of_a_registry() {
        let local: ImageRef = "localhost/updraft/python".parse().unwrap();
        assert!(remote_candidates(&local).is_empty());
        let short: ImageRef = "alpine".parse().unwrap();
        assert_eq!(remote_candidates(&short), ["docker.io/library/alpine:latest"]);
    }

    #[test]
    fn only_registries_of_this_machine_are_on_loopback() {
        for name in ["localhost:5000/x:1", "127.0.0.1:5000/x:1", "[::1]:5000/x:1"] {
            assert!(is_on_loopback(name), "{name}");
        }
        for name in ["docker.io/library/x:1", "localhost.example.com/x:1", "10.0.0.1:5000/x:1"] {
            assert!(!is_on_loopback(name), "{name}");
        }
    }
}
