//! What a build is given, looked at before anything of it is used.

use std::collections::BTreeMap;
use std::fs;
use std::io::Read as _;
use std::path::Path;

use rustix::fs::{Mode, OFlags};

use crate::dockerfile::{BYTES_MAX, Dockerfile};
use crate::{BuildError, BuildRequest};

pub(super) fn read_dockerfile(request: &BuildRequest) -> Result<Dockerfile, BuildError> {
    let path = request.context.join("Dockerfile");
    // A link could lead to any file of the machine, a pipe would never end.
    let flags = OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
    let file = rustix::fs::open(&path, flags, Mode::empty())
        .map_err(|error| BuildError::NoDockerfile { cause: error.into() })?;
    let mut text = String::new();
    let cap = u64::try_from(BYTES_MAX).unwrap_or(u64::MAX);
    fs::File::from(file)
        .take(cap)
        .read_to_string(&mut text)
        .map_err(|cause| BuildError::NoDockerfile { cause })?;
    if text.len() == BYTES_MAX {
        return Err(BuildError::Dockerfile { line: 1, reason: "it is too large".to_owned() });
    }
    Dockerfile::parse(&text, &request.build_args)
}

pub(super) fn check_arguments(arguments: &BTreeMap<String, String>) -> Result<(), BuildError> {
    for (name, value) in arguments {
        let fits = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'_';
        let starts_well = !name.starts_with(|first: char| first.is_ascii_digit());
        if name.is_empty() || !starts_well || !name.bytes().all(fits) || value.contains('\0') {
            let reason = format!("the build argument `{name}` is not a variable's name and value");
            return Err(BuildError::Dockerfile { line: 1, reason });
        }
    }
    Ok(())
}

/// A bind mount's source has to lie in the context, and no link may lead away from there.
pub(super) fn check_binds(file: &Dockerfile, context: &Path) -> Result<(), BuildError> {
    for (line, source) in &file.binds {
        let wrong = |reason: &str| BuildError::Dockerfile {
            line: *line,
            reason: format!("the mount's source `{source}` {reason}"),
        };
        let mut path = context.to_owned();
        for part in source.split('/').filter(|part| !matches!(*part, "" | ".")) {
            if part == ".." {
                return Err(wrong("leads out of the context"));
            }
            path.push(part);
            match fs::symlink_metadata(&path) {
                Ok(found) if !found.is_symlink() => {}
                Ok(_) => return Err(wrong("is or holds a symbolic link")),
                Err(_) => return Err(wrong("is not in the context")),
            }
        }
    }
    Ok(())
}
