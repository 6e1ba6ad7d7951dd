//! Working trees that travel without a commit.

use std::io::Write;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use bytes::Bytes;
use http_body_util::{BodyExt, Full};
use proptest::prelude::*;
use updraft_source::git::upload::{PackError, UploadError, Uploaded, pack, packed_body, unpack};
use updraft_source::git::{ContentError, ContentLimits, GitBody};

use crate::house::House;

const SENT: u64 = 8 * 1024 * 1024;

fn body(bytes: Vec<u8>) -> GitBody {
    Full::new(Bytes::from(bytes)).map_err(|never| match never {}).boxed_unsync()
}

async fn receive(bytes: Vec<u8>) -> (Result<Uploaded, UploadError>, tempfile::TempDir) {
    let place = tempfile::tempdir().unwrap();
    let result = unpack(
        body(bytes),
        &place.path().join("place"),
        SENT,
        &ContentLimits { max_bytes: 10 * 1024 * 1024, max_files: 1000, ..ContentLimits::default() },
    )
    .await;
    (result, place)
}

/// An archive written entry by entry, past the checks of the library.
#[derive(Default)]
struct Hostile {
    bytes: Vec<u8>,
}

impl Hostile {
    fn entry(mut self, kind: tar::EntryType, name: &[u8], link: &[u8], content: &[u8]) -> Self {
        let mut header = tar::Header::new_gnu();
        header.as_old_mut().name[..name.len()].copy_from_slice(name);
        header.as_old_mut().linkname[..link.len()].copy_from_slice(link);
        header.set_entry_type(kind);
        header.set_mode(0o4777);
        header.set_size(content.len() as u64);
        header.set_cksum();
        self.bytes.extend_from_slice(header.as_bytes());
        self.bytes.extend_from_slice(content);
        self.bytes.resize(self.bytes.len().next_multiple_of(512), 0);
        self
    }

    fn file(self, name: &[u8], content: &[u8]) -> Self {
        self.entry(tar::EntryType::Regular, name, b"", content)
    }

    fn done(mut self) -> Vec<u8> {
        self.bytes.resize(self.bytes.len() + 1024, 0);
        self.bytes
    }
}

fn gzip(bytes: &[u8]) -> Vec<u8> {
    let mut gzip = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    gzip.write_all(bytes).unwrap();
    gzip.finish().unwrap()
}

#[tokio::test]
async fn a_working_tree_travels_without_what_git_ignores() {
    let house = House::new().await;
    let clone = house.clone_path();
    house.commit(".gitignore", b"target/\n*.log\n").await;
    house.commit("deleted", b"gone").await;
    std::fs::remove_file(clone.join("deleted")).unwrap();
    let long = format!("{}/{}/file", "a".repeat(120), "b".repeat(120));
    for (path, content) in
        [("changed", "now"), ("target/big", "no"), ("x.log", "no"), (long.as_str(), "deep")]
    {
        let file = clone.join(path);
        std::fs::create_dir_all(file.parent().unwrap()).unwrap();
        std::fs::write(file, content).unwrap();
    }
    std::fs::set_permissions(clone.join("changed"), PermissionsExt::from_mode(0o700)).unwrap();
    std::os::unix::fs::symlink("/etc/passwd", clone.join("link")).unwrap();

    let (body, packing) = packed_body(clone.clone(), ContentLimits::default());
    let place = tempfile::tempdir().unwrap();
    let uploaded = unpack(body, place.path(), SENT, &ContentLimits::default()).await.unwrap();
    let packed = packing.await.unwrap().unwrap();
    assert_eq!((packed.files, packed.bytes), (uploaded.files, uploaded.bytes));
    assert_eq!(uploaded.files, 4);
    assert_eq!(std::fs::read(place.path().join(&long)).unwrap(), b"deep");
    assert_eq!(std::fs::read_link(place.path().join("link")).unwrap(), Path::new("/etc/passwd"));
    let mode = place.path().join("changed").metadata().unwrap().permissions().mode();
    assert_eq!(mode & 0o7777, 0o755);
    assert!(!place.path().join("target").exists() && !place.path().join("x.log").exists());
    assert!(!place.path().join(".git").exists() && !place.path().join("deleted").exists());

    let (mut one, mut other) = (Vec::new(), Vec::new());
    pack(&clone, &ContentLimits::default(), &mut one).unwrap();
    pack(&clone, &ContentLimits::default(), &mut other).unwrap();
    assert!(one == other, "the same tree is the same archive");
}

#[test]
fn a_folder_without_git_is_packed_whole() {
    let folder = tempfile::tempdir().unwrap();
    std::fs::create_dir(folder.path().join("sub")).unwrap();
    std::fs::write(folder.path().join("sub/x"), "1").unwrap();
    std::fs::write(folder.path().join("y"), "2").unwrap();
    let packed = pack(folder.path(), &ContentLimits::default(), std::io::sink()).unwrap();
    assert_eq!((packed.files, packed.bytes), (2, 2));
    let limits = ContentLimits { max_file_bytes: 0, ..ContentLimits::default() };
    let refused = pack(folder.path(), &limits, std::io::sink());
    assert!(
        matches!(refused, Err(PackError::Content(ContentError::FileTooLarge { .. }))),
        "{refused:?}"
    );
    let missing = pack(&folder.path().join("none"), &limits, std::io::sink());
    assert!(matches!(missing, Err(PackError::Read { .. })), "{missing:?}");
}

#[tokio::test]
async fn a_tree_that_cannot_be_packed_whole_is_not_taken_for_a_small_one() {
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join("a"), "1").unwrap();
    std::fs::write(folder.path().join("b"), "22").unwrap();
    let limits = ContentLimits { max_file_bytes: 1, ..ContentLimits::default() };
    let (body, packing) = packed_body(folder.path().to_owned(), limits);
    let place = tempfile::tempdir().unwrap();
    let result = unpack(body, place.path(), SENT, &ContentLimits::default()).await;
    assert!(matches!(result, Err(UploadError::Broken(_))), "{result:?}");
    assert!(packing.await.unwrap().is_err());
}

#[tokio::test]
async fn archives_of_the_usual_programs_are_read() {
    let folder = tempfile::tempdir().unwrap();
    let long = format!("{}/{}/ä", "a".repeat(120), "b".repeat(120));
    let file = folder.path().join(&long);
    std::fs::create_dir_all(file.parent().unwrap()).unwrap();
    std::fs::write(file, "deep").unwrap();
    std::fs::create_dir(folder.path().join("empty")).unwrap();
    for arguments in
        [&["-cz", "--format=gnu"][..], &["-c", "--format=pax"], &["-c", "--format=ustar"]]
    {
        let mut command = std::process::Command::new("tar");
        let output = command.args(arguments).args(["-f", "-", "."]).current_dir(folder.path());
        let output = output.output().unwrap();
        let (result, place) = receive(output.stdout).await;
        if arguments.contains(&"--format=ustar") && !output.status.success() {
            // That format has no room for such a path, and tar left it out.
            continue;
        }
        assert_eq!(result.unwrap(), Uploaded { files: 1, bytes: 4 }, "{arguments:?}");
        let place = place.path().join("place");
        assert_eq!(std::fs::read(place.join(&long)).unwrap(), b"deep");
        assert!(place.join("empty").is_dir());
    }
}

#[tokio::test]
async fn archives_that_reach_outside_are_refused() {
    use tar::EntryType as Kind;
    let outside = tempfile::tempdir().unwrap();
    let outside = outside.path().to_str().unwrap().as_bytes().to_vec();
    let new = Hostile::default;
    for archive in [
        new().file(b"../escape", b"x"),
        new().file(b"/tmp/updraft-escape", b"x"),
        new().file(b"a/../../escape", b"x"),
        new().file(b".git/hooks/pre-commit", b"x"),
        new().file(b"./../escape", b"x"),
        new().entry(Kind::Directory, b"../escape/", b"", b""),
        new().entry(Kind::Symlink, b"../escape", b"x", b""),
        new().entry(Kind::Symlink, b"way", &outside, b"").file(b"way/escape", b"x"),
        new().file(b"way/escape", b"x").entry(Kind::Symlink, b"way", &outside, b""),
        new().entry(Kind::Symlink, b"way", &outside, b"").entry(
            Kind::Directory,
            b"way/d/",
            b"",
            b"",
        ),
        new().entry(Kind::Link, b"hard", b"/etc/passwd", b""),
        new().entry(Kind::Fifo, b"pipe", b"", b""),
        new().entry(Kind::Block, b"disk", b"", b""),
        new().entry(Kind::GNUSparse, b"sparse", b"", b""),
        new().entry(Kind::GNULongName, b"././@LongLink", b"", b"../escape\0").file(b"fine", b"x"),
        new().entry(Kind::XHeader, b"x", b"", b"18 path=../escape\n").file(b"fine", b"x"),
        new().file(b"twice", b"x").file(b"twice", b"y"),
        new().file(b"", b"x"),
    ] {
        let bytes = archive.done();
        for bytes in [gzip(&bytes), bytes] {
            let (result, place) = receive(bytes).await;
            assert!(matches!(result, Err(UploadError::Content(_))), "{result:?}");
            let above: Vec<_> = std::fs::read_dir(place.path()).unwrap().collect();
            assert_eq!(above.len(), 1, "nothing escaped");
        }
    }
    assert_eq!(
        std::fs::read_dir(Path::new(std::str::from_utf8(&outside).unwrap())).unwrap().count(),
        0
    );
    assert!(!Path::new("/tmp/updraft-escape").exists());
}

#[tokio::test]
async fn archives_that_lie_about_sizes_or_break_off_are_refused() {
    use tar::EntryType as Kind;
    let new = Hostile::default;
    let good = new().file(b"a", &[b'x'; 5000]).file(b"b", b"y").done();
    for cut in [1, 300, 511, 600, 5000] {
        let (result, _place) = receive(good[..cut].to_vec()).await;
        assert!(result.is_err(), "cut at {cut}: {result:?}");
        let packed = gzip(&good);
        let (result, _place) = receive(packed[..packed.len() - 9].to_vec()).await;
        assert!(result.is_err(), "{result:?}");
    }
    for archive in [
        new().entry(Kind::XHeader, b"x", b"", b"11 size=99\n").file(b"a", b"x").done(),
        new().entry(Kind::XHeader, b"x", b"", &vec![b'x'; 100_000]).file(b"a", b"x").done(),
        new().entry(Kind::GNULongName, b"x", b"", &vec![b'x'; 100_000]).file(b"a", b"x").done(),
        vec![b'x'; 2000],
        b"GET / HTTP/1.1".to_vec(),
    ] {
        let (result, _place) = receive(archive).await;
        assert!(
            matches!(result, Err(UploadError::Format { .. } | UploadError::Broken(_))),
            "{result:?}"
        );
    }
}

#[tokio::test]
async fn caps_hold_against_archives_that_unpack_to_more() {
    let (result, _place) =
        receive(gzip(&Hostile::default().file(b"a", &vec![0; 11 << 20]).done())).await;
    assert!(
        matches!(result, Err(UploadError::Content(ContentError::TooLarge { .. }))),
        "{result:?}"
    );
    let (result, _place) = receive(vec![0; usize::try_from(SENT).unwrap() + 1]).await;
    assert!(matches!(result, Err(UploadError::TooLarge { .. })), "{result:?}");
    let mut many = Hostile::default();
    for number in 0..1001 {
        many = many.file(format!("{number}").as_bytes(), b"");
    }
    let (result, _place) = receive(gzip(&many.done())).await;
    assert!(
        matches!(result, Err(UploadError::Content(ContentError::TooManyFiles { .. }))),
        "{result:?}"
    );
    // Endless padding behind the end of a small archive.
    let mut padded = Hostile::default().file(b"a", b"x").done();
    padded.resize(32 << 20, 0);
    let (result, _place) = receive(gzip(&padded)).await;
    assert!(matches!(result, Err(UploadError::Format { .. })), "{result:?}");
}

#[tokio::test]
async fn an_upload_goes_only_into_an_empty_folder() {
    let place = tempfile::tempdir().unwrap();
    std::fs::write(place.path().join("there"), "x").unwrap();
    let archive = Hostile::default().file(b"a", b"x").done();
    let result = unpack(body(archive), place.path(), SENT, &ContentLimits::default()).await;
    assert!(matches!(result, Err(UploadError::Storage { .. })), "{result:?}");
}

/// Archives of one to four entries with names and links that lead everywhere, some of them cut or
/// with a byte changed.
fn archives() -> impl Strategy<Value = Vec<u8>> {
    let name = || {
        proptest::string::string_regex("(\\./|\\.\\./|/|a/|b/|\\.git/|way/){0,3}[ab.]{0,2}")
            .unwrap()
    };
    let kind =
        proptest::sample::select(vec![b'0', b'1', b'2', b'5', b'L', b'K', b'x', b'g', b'S', b'7']);
    let entry = (kind, name(), name(), proptest::collection::vec(any::<u8>(), 0..600));
    let entries = proptest::collection::vec(entry, 1..5);
    (
        entries,
        any::<Option<(proptest::sample::Index, u8)>>(),
        any::<Option<proptest::sample::Index>>(),
    )
        .prop_map(|(entries, changed, cut)| {
            let mut archive = Hostile::default();
            for (kind, name, link, content) in entries {
                let kind = tar::EntryType::new(kind);
                archive = archive.entry(kind, name.as_bytes(), link.as_bytes(), &content);
            }
            let mut bytes = archive.done();
            if let Some((at, byte)) = changed {
                let at = at.index(bytes.len());
                bytes[at] = byte;
            }
            bytes.truncate(cut.map_or(bytes.len(), |cut| cut.index(bytes.len())));
            bytes
        })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]

    #[test]
    fn no_archive_writes_outside_its_folder(bytes in archives(), gzipped in any::<bool>()) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        let bytes = if gzipped { gzip(&bytes) } else { bytes };
        let (result, place) = runtime.block_on(receive(bytes));
        prop_assert!(!matches!(result, Err(UploadError::Storage { .. })), "{result:?}");
        let above: Vec<_> = std::fs::read_dir(place.path()).unwrap().collect();
        prop_assert_eq!(above.len(), 1);
    }
}
