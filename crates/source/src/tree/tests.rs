//! Hostile trees.

use super::*;
use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
use std::path::PathBuf;
use tempfile::TempDir;

struct Trees {
    _keep: TempDir,
    source: PathBuf,
    target: PathBuf,
}

fn trees() -> Trees {
    let keep = tempfile::tempdir().unwrap();
    let (source, target) = (keep.path().join("source"), keep.path().join("target"));
    fs::create_dir(&source).unwrap();
    fs::create_dir(&target).unwrap();
    Trees { _keep: keep, source, target }
}

fn copy_with(trees: &Trees, limits: &ContextLimits) -> Result<Digest, CopyError> {
    let mut copier = Copier::new(&trees.target, limits)?;
    copier.tree(&open_root(&trees.source).unwrap(), "hello", "function", &|name| name == "skip")?;
    Ok(copier.digest(&BTreeMap::new()))
}

fn copy(trees: &Trees) -> Result<Digest, CopyError> {
    copy_with(trees, &ContextLimits::default())
}

#[test]
fn a_tree_is_copied_with_its_executable_bits_and_inner_links() {
    let trees = trees();
    fs::create_dir_all(trees.source.join("a/b")).unwrap();
    fs::write(trees.source.join("a/b/file"), "content").unwrap();
    fs::write(trees.source.join("run"), "#!").unwrap();
    fs::set_permissions(trees.source.join("run"), PermissionsExt::from_mode(0o6711)).unwrap();
    fs::write(trees.source.join("skip"), "").unwrap();
    fs::write(trees.source.join("a/skip"), "").unwrap();
    symlink("../run", trees.source.join("a/link")).unwrap();
    copy(&trees).unwrap();
    let to = trees.target.join("function");
    assert_eq!(fs::read_to_string(to.join("a/b/file")).unwrap(), "content");
    assert_eq!(fs::metadata(to.join("run")).unwrap().mode() & 0o7777, 0o755);
    assert_eq!(fs::metadata(to.join("a/b/file")).unwrap().mode() & 0o7777, 0o644);
    assert_eq!(fs::read_link(to.join("a/link")).unwrap(), Path::new("../run"));
    assert!(!to.join("skip").exists());
    assert!(to.join("a/skip").exists(), "only the top level is filtered");
}

#[test]
fn the_digest_is_of_content_and_nothing_else() {
    let (one, other) = (trees(), trees());
    for trees in [&one, &other] {
        fs::create_dir(trees.source.join("d")).unwrap();
        fs::write(trees.source.join("d/f"), "x").unwrap();
    }
    let old = fs::FileTimes::new().set_modified(std::time::UNIX_EPOCH);
    fs::File::options().write(true).open(other.source.join("d/f")).unwrap().set_times(old).unwrap();
    fs::set_permissions(other.source.join("d/f"), PermissionsExt::from_mode(0o600)).unwrap();
    let digest = copy(&one).unwrap();
    assert_eq!(digest, copy(&other).unwrap());
    assert_eq!(digest, copy(&one).unwrap(), "a second run over the first one's files");

    let changes: [&dyn Fn(&Path); 5] = [
        &|path| fs::write(path.join("d/f"), "y").unwrap(),
        &|path| fs::set_permissions(path.join("d/f"), PermissionsExt::from_mode(0o755)).unwrap(),
        &|path| fs::create_dir(path.join("empty")).unwrap(),
        &|path| fs::rename(path.join("d/f"), path.join("d/g")).unwrap(),
        &|path| symlink("d", path.join("link")).unwrap(),
    ];
    let mut seen = vec![digest];
    for change in changes {
        change(&other.source);
        let digest = copy(&other).unwrap();
        assert!(!seen.contains(&digest));
        seen.push(digest);
    }
}

#[test]
fn links_out_of_the_tree_are_refused_by_name() {
    for target in ["/etc/passwd", "..", "../..", "a/../../x", "./../x", "a/..", "/", "x/../.."] {
        let trees = trees();
        symlink(target, trees.source.join("link")).unwrap();
        let error = copy(&trees).unwrap_err();
        assert!(matches!(error, CopyError::Link { .. }), "{target}: {error}");
        let text = error.to_string();
        assert!(text.contains("`hello/link`") && text.contains(&format!("`{target}`")), "{text}");
    }
}

#[test]
fn links_up_to_the_trees_root_and_not_further_are_kept() {
    let inner = trees();
    fs::create_dir_all(inner.source.join("a/b")).unwrap();
    symlink("../..", inner.source.join("a/b/root")).unwrap();
    symlink("loop", inner.source.join("loop")).unwrap();
    symlink("missing/file", inner.source.join("dangling")).unwrap();
    copy(&inner).unwrap();
    symlink("../../..", inner.source.join("a/b/out")).unwrap();
    assert!(matches!(copy(&inner), Err(CopyError::Link { .. })));
}

#[test]
fn a_link_over_another_link_cannot_escape() {
    // `up` leads to the root; `up/..` would leave it, although its text alone looks harmless.
    let trees = trees();
    fs::create_dir_all(trees.source.join("a/b")).unwrap();
    symlink("../..", trees.source.join("a/b/up")).unwrap();
    symlink("b/up/../secret", trees.source.join("a/escape")).unwrap();
    assert!(matches!(copy(&trees), Err(CopyError::Link { .. })));
}

#[test]
fn a_link_in_the_target_is_never_written_through() {
    let trees = trees();
    let outside = trees.target.parent().unwrap().join("outside");
    fs::create_dir(&outside).unwrap();
    fs::write(outside.join("victim"), "before").unwrap();
    symlink(&outside, trees.target.join("function")).unwrap();
    fs::write(trees.source.join("victim"), "after").unwrap();
    assert!(matches!(copy(&trees), Err(CopyError::Conflict { .. })));
    fs::remove_file(trees.target.join("function")).unwrap();
    fs::create_dir(trees.target.join("function")).unwrap();
    symlink(outside.join("victim"), trees.target.join("function/victim")).unwrap();
    copy(&trees).unwrap();
    assert_eq!(fs::read_to_string(outside.join("victim")).unwrap(), "before");
    assert_eq!(fs::read_to_string(trees.target.join("function/victim")).unwrap(), "after");
}

#[test]
fn fifos_sockets_and_devices_are_refused() {
    let fifo = trees();
    let mode = Mode::from_raw_mode(0o600);
    rustix::fs::mkfifoat(rustix::fs::CWD, fifo.source.join("f"), mode).unwrap();
    assert!(copy(&fifo).unwrap_err().to_string().contains("`hello/f` is a FIFO"));
    let socket = trees();
    let _listener = std::os::unix::net::UnixListener::bind(socket.source.join("s")).unwrap();
    assert!(copy(&socket).unwrap_err().to_string().contains("`hello/s` is a socket"));
    let device = trees();
    let (kind, number) = (FileType::CharacterDevice, rustix::fs::makedev(1, 3));
    rustix::fs::mknodat(rustix::fs::CWD, device.source.join("d"), kind, mode, number).unwrap();
    assert!(copy(&device).unwrap_err().to_string().contains("`hello/d` is a device"));
}

#[test]
fn a_sparse_gigabyte_is_refused_before_a_byte_is_read() {
    let trees = trees();
    fs::File::create(trees.source.join("huge")).unwrap().set_len(1 << 30).unwrap();
    let started = std::time::Instant::now();
    let error = copy(&trees).unwrap_err();
    assert!(matches!(error, CopyError::FileBytes { size, .. } if size == 1 << 30), "{error}");
    assert!(started.elapsed() < std::time::Duration::from_secs(1));
}

#[test]
fn all_files_together_have_a_limit() {
    let trees = trees();
    for name in ["a", "b", "c"] {
        fs::write(trees.source.join(name), "12345").unwrap();
    }
    let limits = ContextLimits { total_bytes: 14, ..ContextLimits::default() };
    let error = copy_with(&trees, &limits).unwrap_err();
    assert!(matches!(error, CopyError::TotalBytes { limit: 14, .. }), "{error}");
    copy_with(&trees, &ContextLimits { total_bytes: 15, ..limits }).unwrap();
}

#[test]
fn too_many_files_are_refused_before_they_are_copied() {
    let trees = trees();
    for number in 0..300 {
        fs::write(trees.source.join(number.to_string()), "").unwrap();
    }
    let limits = ContextLimits { files: 200, ..ContextLimits::default() };
    let error = copy_with(&trees, &limits).unwrap_err();
    assert!(matches!(error, CopyError::Files { limit: 200, .. }), "{error}");
    assert_eq!(fs::read_dir(trees.target.join("function")).unwrap().count(), 0);
    copy_with(&trees, &ContextLimits { files: 300, ..limits }).unwrap();
}

#[test]
fn folders_in_folders_end_somewhere() {
    let trees = trees();
    let limits = ContextLimits { depth: 5, ..ContextLimits::default() };
    fs::create_dir_all(trees.source.join("d/".repeat(5))).unwrap();
    copy_with(&trees, &limits).unwrap();
    fs::create_dir_all(trees.source.join("d/".repeat(6))).unwrap();
    let error = copy_with(&trees, &limits).unwrap_err();
    assert!(matches!(error, CopyError::Depth { limit: 5, .. }), "{error}");
}

#[test]
fn long_paths_and_strange_names_are_refused() {
    let long = trees();
    let name = "n".repeat(200);
    fs::create_dir(long.source.join(&name)).unwrap();
    fs::write(long.source.join(&name).join(&name), "").unwrap();
    let limits = ContextLimits { path_bytes: 300, ..ContextLimits::default() };
    assert!(matches!(copy_with(&long, &limits), Err(CopyError::PathBytes { .. })));

    use std::ffi::OsStr;
    use std::os::unix::ffi::OsStrExt as _;
    for name in [&b"\xff\xfe"[..], b"a\nb", b"\x1b[31m"] {
        let strange = trees();
        fs::write(strange.source.join(OsStr::from_bytes(name)), "").unwrap();
        let error = copy(&strange).unwrap_err();
        assert!(matches!(error, CopyError::Name { .. }), "{error}");
        assert!(!error.to_string().contains(['\x1b', '\n']), "{error:?}");
    }
}

#[test]
fn a_file_where_another_tree_has_a_folder_is_a_conflict() {
    let trees = trees();
    fs::write(trees.source.join("x"), "").unwrap();
    fs::create_dir_all(trees.target.join("function/x")).unwrap();
    assert!(matches!(copy(&trees), Err(CopyError::Conflict { .. })));
}
