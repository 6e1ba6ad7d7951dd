//! Checkouts of good, odd and hostile commits.

use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use updraft_source::git::{
    CheckedOut, ContentError, ContentLimits, GitError, checkout, commit_summary, is_ancestor,
    resolve,
};

use crate::house::House;

/// A bare repository into which objects are put past all checks.
struct Bare {
    folder: tempfile::TempDir,
}

impl Bare {
    fn new() -> Self {
        let bare = Self { folder: tempfile::tempdir().unwrap() };
        bare.git(&["init", "-q", "--bare", "."], b"");
        bare
    }

    fn path(&self) -> &Path {
        self.folder.path()
    }

    fn git(&self, arguments: &[&str], input: &[u8]) -> String {
        let mut child = Command::new("git")
            .args(["-c", "user.name=Mallory", "-c", "user.email=m@example.com"])
            .args(arguments)
            .current_dir(self.path())
            .env("GIT_CONFIG_NOSYSTEM", "1")
            .env("GIT_CONFIG_GLOBAL", "/dev/null")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut stdin = child.stdin.take().unwrap();
        let input = input.to_vec();
        let writer =
            std::thread::spawn(move || std::io::Write::write_all(&mut stdin, &input).unwrap());
        let output = child.wait_with_output().unwrap();
        writer.join().unwrap();
        assert!(output.status.success(), "{arguments:?}");
        String::from_utf8(output.stdout).unwrap().trim().to_owned()
    }

    fn blob(&self, content: &[u8]) -> String {
        self.git(&["hash-object", "-w", "--stdin"], content)
    }

    /// A tree with these entries as they are, in this order.
    fn tree(&self, entries: &[(&str, &[u8], &str)]) -> String {
        let mut bytes = Vec::new();
        for (mode, name, object) in entries {
            bytes.extend_from_slice(mode.as_bytes());
            bytes.push(b' ');
            bytes.extend_from_slice(name);
            bytes.push(0);
            for pair in 0..object.len() / 2 {
                bytes.push(u8::from_str_radix(&object[2 * pair..2 * pair + 2], 16).unwrap());
            }
        }
        self.git(&["hash-object", "-t", "tree", "--literally", "-w", "--stdin"], &bytes)
    }

    fn commit(&self, tree: &str) -> String {
        self.git(&["commit-tree", tree, "-m", "x"], b"")
    }

    /// Checks out a commit of one tree.
    async fn out(&self, entries: &[(&str, &[u8], &str)]) -> (Result<CheckedOut, GitError>, Place) {
        let commit = self.commit(&self.tree(entries));
        self.out_with(&commit, &ContentLimits::default()).await
    }

    async fn out_with(
        &self,
        commit: &str,
        limits: &ContentLimits,
    ) -> (Result<CheckedOut, GitError>, Place) {
        let place = Place { above: tempfile::tempdir().unwrap() };
        let result = checkout(self.path(), commit, &place.path(), limits).await;
        (result, place)
    }
}

/// Where a checkout went, with the folder above to see what escaped.
struct Place {
    above: tempfile::TempDir,
}

impl Place {
    fn path(&self) -> PathBuf {
        self.above.path().join("place")
    }

    fn assert_untouched(&self) {
        assert_eq!(std::fs::read_dir(self.path()).unwrap().count(), 0, "nothing was written");
        assert_eq!(std::fs::read_dir(self.above.path()).unwrap().count(), 1, "nothing escaped");
    }
}

#[tokio::test]
async fn exactly_the_pushed_commit_is_written() {
    let house = House::new().await;
    let clone = house.clone_path();
    house.commit("src/deep/a.py", b"print(1) # $Id$\n").await;
    std::fs::write(clone.join("run.sh"), "#!/bin/sh\n").unwrap();
    std::fs::set_permissions(clone.join("run.sh"), PermissionsExt::from_mode(0o755)).unwrap();
    std::os::unix::fs::symlink("src/deep/a.py", clone.join("link")).unwrap();
    // Attributes that would run a filter, change line endings and leave a file out.
    house
        .commit(".gitattributes", b"*.py filter=evil text eol=crlf ident\nrun.sh export-ignore\n")
        .await;
    let wanted = house.commit("empty", b"").await;
    let later = house.commit("later", b"not yet").await;
    assert!(house.push(&["main"]).await.status.success());
    house
        .ok(&["--git-dir", house.bare().to_str().unwrap(), "config", "filter.evil.smudge", "false"])
        .await;

    let place = house.folder.path().join("out");
    let written =
        checkout(&house.bare(), &wanted, &place, &ContentLimits::default()).await.unwrap();
    assert_eq!(written.files, 5);
    assert_eq!(std::fs::read(place.join("src/deep/a.py")).unwrap(), b"print(1) # $Id$\n");
    assert_eq!(std::fs::read_link(place.join("link")).unwrap(), Path::new("src/deep/a.py"));
    let mode = |path: &str| place.join(path).metadata().unwrap().permissions().mode() & 0o7777;
    assert_eq!((mode("run.sh"), mode("empty"), mode("src")), (0o755, 0o644, 0o755));
    assert!(!place.join("later").exists());

    let full = checkout(&house.bare(), &later, &place, &ContentLimits::default()).await;
    assert!(matches!(full, Err(GitError::Storage { .. })), "only into an empty folder");

    assert!(is_ancestor(&house.bare(), &wanted, &later).await.unwrap());
    assert!(!is_ancestor(&house.bare(), &later, &wanted).await.unwrap());
    let summary = commit_summary(&house.bare(), &later).await.unwrap();
    assert_eq!((summary.author.as_str(), summary.subject.as_str()), ("Alice", "later"));
    assert_eq!(summary.email, "alice@example.com");
    assert!(summary.committed_at > 1_500_000_000);
    let resolved = resolve(&house.bare(), "refs/heads/main").await.unwrap();
    assert_eq!(resolved.as_deref(), Some(later.as_str()));
    assert_eq!(resolve(&house.bare(), "refs/heads/none").await.unwrap(), None);
}

#[tokio::test]
async fn a_commit_that_is_not_there_is_never_replaced_by_another() {
    let bare = Bare::new();
    let blob = bare.blob(b"x");
    let tree = bare.tree(&[("100644", b"a", &blob)]);
    let commit = bare.commit(&tree);
    bare.git(&["update-ref", "refs/heads/main", &commit], b"");
    let absent = "1234567890123456789012345678901234567890";
    for wrong in [absent, &tree, &blob, "main", "HEAD", "", &commit[..20], "--help", "-h"] {
        let (result, place) = bare.out_with(wrong, &ContentLimits::default()).await;
        assert!(matches!(result, Err(GitError::NoCommit { .. })), "{wrong}: {result:?}");
        assert!(!place.path().exists() || std::fs::read_dir(place.path()).unwrap().count() == 0);
    }
    for question in [
        is_ancestor(bare.path(), absent, &commit).await.map(drop),
        commit_summary(bare.path(), absent).await.map(drop),
    ] {
        assert!(matches!(question, Err(GitError::NoCommit { .. })), "{question:?}");
    }
    // A replacement that somebody pushed does not replace anything.
    let other = bare.commit(&bare.tree(&[("100644", b"b", &blob)]));
    bare.git(&["replace", &commit, &other], b"");
    let (result, place) = bare.out_with(&commit, &ContentLimits::default()).await;
    result.unwrap();
    assert!(place.path().join("a").exists() && !place.path().join("b").exists());
}

#[tokio::test]
async fn trees_that_reach_outside_are_refused_before_anything_is_written() {
    let bare = Bare::new();
    let blob = bare.blob(b"#!/bin/sh\n");
    let inner = bare.tree(&[("100644", b"config", &blob)]);
    for name in [
        &b".."[..],
        b".",
        b"../escape",
        b"/etc/escape",
        b".git",
        b".GIT",
        b"git~1",
        b".git. ",
        b".g\xe2\x80\x8cit",
        b"a\x1b[2J",
        b"a\nb",
        b"\xff",
    ] {
        for (mode, object) in [("100644", &blob), ("40000", &inner)] {
            let (result, place) = bare.out(&[("100644", b"Z", &blob), (mode, name, object)]).await;
            assert!(
                matches!(result, Err(GitError::Content(ContentError::BadPath { .. }))),
                "{name:?} {result:?}"
            );
            place.assert_untouched();
        }
    }
}

#[tokio::test]
async fn links_are_no_way_out() {
    let bare = Bare::new();
    let blob = bare.blob(b"owned");
    let target = bare.blob(b"../");
    let folder = bare.tree(&[("100644", b"escape", &blob)]);
    // The same name as a link and as a folder behind it, and in another case.
    for (link, behind) in [(&b"way"[..], &b"way"[..]), (b"way", b"WAY")] {
        let (result, place) =
            bare.out(&[("120000", link, &target), ("40000", behind, &folder)]).await;
        assert!(
            matches!(result, Err(GitError::Content(ContentError::Duplicate { .. }))),
            "{result:?}"
        );
        place.assert_untouched();
    }
    let passwd = bare.blob(b"/etc/passwd");
    let (result, place) = bare.out(&[("120000", b"passwd", &passwd)]).await;
    result.unwrap();
    assert_eq!(std::fs::read_link(place.path().join("passwd")).unwrap(), Path::new("/etc/passwd"));

    for target in [&b""[..], b"a\0b", &[b'x'; 5000]] {
        let target = bare.blob(target);
        let (result, _place) = bare.out(&[("120000", b"bad", &target)]).await;
        assert!(
            matches!(result, Err(GitError::Content(ContentError::BadLink { .. }))),
            "{result:?}"
        );
    }
}

#[tokio::test]
async fn the_same_name_twice_is_refused() {
    let bare = Bare::new();
    let blob = bare.blob(b"x");
    for names in [[b"a", b"a"], [b"A", b"a"]] {
        let entries = names.map(|name| ("100644", &name[..], blob.as_str()));
        let (result, place) = bare.out(&entries).await;
        assert!(
            matches!(result, Err(GitError::Content(ContentError::Duplicate { .. }))),
            "{result:?}"
        );
        place.assert_untouched();
    }
}

#[tokio::test]
async fn submodules_are_left_out_and_named() {
    let bare = Bare::new();
    let blob = bare.blob(b"[submodule \"x\"]\n\tpath = x\n\turl = ext::sh -c evil\n");
    let commit = bare.commit(&bare.tree(&[]));
    let (result, place) =
        bare.out(&[("100644", b".gitmodules", &blob), ("160000", b"x", &commit)]).await;
    assert_eq!(result.unwrap().submodules, ["x"]);
    assert!(!place.path().join("x").exists());
}

#[tokio::test]
async fn an_object_that_is_missing_or_of_another_kind_fails_the_checkout() {
    let bare = Bare::new();
    let absent = "1234567890123456789012345678901234567890";
    let (result, _place) = bare.out(&[("100644", b"a", absent)]).await;
    assert!(result.is_err());
    let tree = bare.tree(&[]);
    let (result, _place) = bare.out(&[("100644", b"a", &tree)]).await;
    assert!(result.is_err(), "{result:?}");
}

#[tokio::test]
async fn caps_are_kept_before_anything_is_written() {
    let bare = Bare::new();
    let blob = bare.blob(&[b'x'; 1000]);
    let mut tree = bare.tree(&[("100644", b"leaf", &blob)]);
    for _ in 0..70 {
        tree = bare.tree(&[("40000", b"d", &tree)]);
    }
    let (result, place) = bare.out_with(&bare.commit(&tree), &ContentLimits::default()).await;
    assert!(matches!(result, Err(GitError::Content(ContentError::TooDeep { .. }))), "{result:?}");
    place.assert_untouched();

    let entries =
        [("100644", &b"a"[..], blob.as_str()), ("100644", b"b", &blob), ("100644", b"c", &blob)];
    let commit = bare.commit(&bare.tree(&entries));
    let limits = ContentLimits::default;
    for (limits, wanted) in [
        (ContentLimits { max_files: 2, ..limits() }, ContentError::TooManyFiles { limit: 2 }),
        (ContentLimits { max_bytes: 2999, ..limits() }, ContentError::TooLarge { limit: 2999 }),
        (
            ContentLimits { max_file_bytes: 999, ..limits() },
            ContentError::FileTooLarge { path: "a".into(), size: 1000, limit: 999 },
        ),
    ] {
        let (result, place) = bare.out_with(&commit, &limits).await;
        match result {
            Err(GitError::Content(error)) => assert_eq!(error, wanted),
            other => panic!("{other:?}"),
        }
        place.assert_untouched();
    }
}

#[tokio::test]
async fn a_hundred_thousand_files_from_a_few_objects_are_refused_quickly() {
    let bare = Bare::new();
    let blob = bare.blob(b"x");
    let names: Vec<String> = (0..100).map(|number| format!("n{number:02}")).collect();
    let files: Vec<_> =
        names.iter().map(|name| ("100644", name.as_bytes(), blob.as_str())).collect();
    let leaf = bare.tree(&files);
    // Three levels of a hundred: a million files from four objects.
    let mut tree = leaf;
    for _ in 0..2 {
        let folders: Vec<_> =
            names.iter().map(|name| ("40000", name.as_bytes(), tree.as_str())).collect();
        tree = bare.tree(&folders);
    }
    let limits = ContentLimits { max_files: 10_000, ..ContentLimits::default() };
    let (result, place) = bare.out_with(&bare.commit(&tree), &limits).await;
    let error = result.unwrap_err().to_string();
    assert!(error.starts_with("there are more than 10000 files"), "{error}");
    place.assert_untouched();
}

#[tokio::test]
async fn a_huge_file_that_packs_to_nothing_is_refused_at_its_size() {
    let house = House::new().await;
    let file = std::fs::File::create(house.clone_path().join("huge")).unwrap();
    file.set_len(64 * 1024 * 1024).unwrap();
    house.ok(&["-c", "core.compression=1", "add", "huge"]).await;
    let commit = house.commit("small", b"x").await;
    let pushed = house.push(&["main"]).await;
    assert!(pushed.status.success(), "{}", crate::house::stderr(&pushed));
    let place = house.folder.path().join("out");
    let limits = ContentLimits { max_file_bytes: 1024 * 1024, ..ContentLimits::default() };
    let result = checkout(&house.bare(), &commit, &place, &limits).await;
    let error = result.unwrap_err().to_string();
    assert_eq!(error, "`huge` has 64 MiB, 1 MiB are allowed, keep large files elsewhere");
    assert_eq!(std::fs::read_dir(&place).unwrap().count(), 0);
}
