//! The store with the real `buildah`, the real kernel and real archives.

#![allow(clippy::unwrap_used, reason = "tests")]

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;
use std::process::Command;

use updraft_images::testing::{TEST_HTTP, TestStore};
use updraft_images::{Driver, Image, ImageError, ImageStore, ImageStoreOptions, base};
use updraft_model::ImageRef;

fn image(text: &str) -> ImageRef {
    text.parse().unwrap()
}

async fn build(store: &ImageStore, folder: &Path, dockerfile: &str, name: &str) -> Image {
    fs::write(folder.join("Dockerfile"), dockerfile).unwrap();
    let mut command = store.command();
    command.args(["build", "--layers", "--isolation", "chroot", "--pull-never", "--tag", name]);
    let output = command.arg(folder).output().await.unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    store.resolve(&image(name)).await.unwrap().unwrap()
}

#[tokio::test]
async fn an_image_is_found_by_every_name_it_can_be_written_as() {
    let (test, made) = TestStore::with_test_image().await;
    let store = test.store();
    for name in [TEST_HTTP, "updraft/test-http", "updraft/test-http:latest"] {
        let found = store.resolve(&image(name)).await.unwrap().unwrap();
        assert_eq!(found, made, "{name}");
    }
    let pinned = image("anything").pinned(made.id);
    assert_eq!(store.resolve(&pinned).await.unwrap().unwrap().id, made.id);
    assert_eq!(store.resolve(&image("updraft/test-http:2")).await.unwrap(), None);
    assert_eq!(made.config.cmd, ["/test-http"]);
    assert_eq!(made.config.exposed_ports, ["8080/tcp"]);
    assert!(made.size_bytes > 100_000, "{}", made.size_bytes);
    assert_eq!(store.list().await.unwrap(), [made]);
}

#[tokio::test]
async fn a_mounted_image_shows_its_layers_and_takes_no_writes() {
    let (test, single) = TestStore::with_test_image().await;
    let store = test.store();
    let context = test.folder().join("context");
    fs::create_dir(&context).unwrap();
    fs::write(context.join("a"), "1").unwrap();
    let text = format!(
        "FROM {TEST_HTTP}\nCOPY a /a\nCOPY a /b\nRUN [\"/test-http\", \"write\", \"/b\", \"2\"]\n"
    );
    let layered = build(&store, &context, &text, "localhost/layered").await;
    for (image, files) in [(&single, vec![]), (&layered, vec![("a", "1"), ("b", "2")])] {
        let tree = store.mount(image).await.unwrap();
        assert_eq!(store.mount(image).await.unwrap(), tree);
        assert!(tree.join("test-http").is_file());
        for (name, content) in files {
            assert_eq!(fs::read_to_string(tree.join(name)).unwrap(), content);
        }
        assert!(fs::write(tree.join("new"), "").is_err());
    }
}

#[tokio::test]
async fn a_machine_without_overlays_keeps_and_mounts_images_too() {
    let test = TestStore::with_driver(Driver::Copy).await;
    let store = test.store();
    assert_eq!(store.driver(), Driver::Copy);
    let base = test.add_test_image().await;
    let context = test.folder().join("context");
    fs::create_dir(&context).unwrap();
    fs::write(context.join("a"), "1").unwrap();
    let text = format!("FROM {TEST_HTTP}\nCOPY a /a\n");
    let layered = build(&store, &context, &text, "localhost/layered").await;
    let tree = store.mount(&layered).await.unwrap();
    assert_eq!(fs::read_to_string(tree.join("a")).unwrap(), "1");
    assert!(tree.join("test-http").is_file());
    assert!(fs::write(tree.join("new"), "").is_err());
    assert_ne!(store.mount(&base).await.unwrap(), tree);
}

#[tokio::test]
async fn a_mount_is_found_again_by_another_process_and_made_again_after_it_went() {
    let (test, made) = TestStore::with_test_image().await;
    let store = test.store();
    let tree = store.mount(&made).await.unwrap();
    let options = ImageStoreOptions::new(store.root().to_owned(), store.run_root().to_owned());
    let again = ImageStore::open(options).await.unwrap();
    assert_eq!(again.mount(&made).await.unwrap(), tree);
    assert_eq!(mounts_at(&tree), 1);
    assert!(matches!(again.remove(&image(TEST_HTTP)).await, Err(ImageError::InUse { .. })));
    assert_eq!(store.unmount_unused(&BTreeSet::from([made.id])).await.unwrap(), 0);
    assert_eq!(store.unmount_unused(&BTreeSet::new()).await.unwrap(), 1);
    assert_eq!(mounts_at(&tree), 0);
    fs::remove_dir_all(store.run_root()).unwrap();
    assert_eq!(store.mount(&made).await.unwrap(), tree);
    assert!(tree.join("test-http").is_file());
}

fn mounts_at(place: &Path) -> usize {
    let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap();
    mounts.lines().filter(|line| line.split(' ').nth(4) == place.to_str()).count()
}

#[tokio::test]
async fn many_callers_at_once_share_one_mount() {
    let (test, made) = TestStore::with_test_image().await;
    let store = test.store();
    let calls: Vec<_> = (0..16)
        .map(|_| {
            let (store, made) = (store.clone(), made.clone());
            tokio::spawn(async move { store.mount(&made).await.unwrap() })
        })
        .collect();
    let mut places = BTreeSet::new();
    for call in calls {
        places.insert(call.await.unwrap());
    }
    assert_eq!(places.len(), 1);
    assert_eq!(mounts_at(places.first().unwrap()), 1);
}

#[tokio::test]
async fn archives_come_in_under_the_names_they_carry() {
    let (test, made) = TestStore::with_test_image().await;
    let store = test.store();
    store.tag(&made, &image("functions/test:1")).await.unwrap();
    let docker = test.folder().join("docker.tar");
    store.save(&image("functions/test:1"), &docker).await.unwrap();
    let oci = test.folder().join("o:c,i.tar");
    let plain = test.folder().join("oci.tar");
    let mut command = store.command();
    command.args(["push", &made.id.hex()]);
    command.arg(format!("oci-archive:{}:ghcr.io/a/oci:2", plain.display()));
    assert!(command.status().await.unwrap().success());
    fs::rename(&plain, &oci).unwrap();
    let status = Command::new("gzip").arg("-k").arg(&docker).status().unwrap();
    assert!(status.success());

    for (archive, expected) in [
        (test.folder().join("docker.tar.gz"), "functions/test:1"),
        (docker, "functions/test:1"),
        (oci, "ghcr.io/a/oci:2"),
    ] {
        let other = TestStore::new().await;
        let names = other.store().load(&archive).await.unwrap();
        assert_eq!(names.len(), 1, "{names:?}");
        assert!(names[0].as_str().ends_with(expected), "{names:?}");
        let found = other.store().resolve(&image(expected)).await.unwrap();
        assert_eq!(found.unwrap().config.cmd, ["/test-http"], "{}", archive.display());
    }
}

#[tokio::test]
async fn an_archive_of_two_images_gives_both() {
    let (test, _) = TestStore::with_test_image().await;
    let store = test.store();
    let context = test.folder().join("context");
    fs::create_dir(&context).unwrap();
    build(&store, &context, &format!("FROM {TEST_HTTP}\nENV A=1\n"), "docker.io/a/one:1").await;
    build(&store, &context, &format!("FROM {TEST_HTTP}\nENV A=2\n"), "docker.io/a/two:1").await;
    let both = two_image_archive(&store, test.folder()).await;
    let other = TestStore::new().await;
    let names = other.store().load(&both).await.unwrap();
    assert_eq!(names.iter().map(ImageRef::as_str).collect::<Vec<_>>(), ["a/one:1", "a/two:1"]);
    for (name, value) in [("a/one:1", "1"), ("a/two:1", "2")] {
        let found = other.store().resolve(&image(name)).await.unwrap().unwrap();
        assert!(found.config.env.contains(&("A".to_owned(), value.to_owned())), "{found:?}");
    }
}

/// Puts two archives together as `docker save ONE TWO` does.
async fn two_image_archive(store: &ImageStore, folder: &Path) -> std::path::PathBuf {
    let tree = folder.join("both");
    fs::create_dir(&tree).unwrap();
    let mut entries = Vec::new();
    for name in ["one", "two"] {
        let archive = folder.join(format!("{name}.tar"));
        store.save(&image(&format!("docker.io/a/{name}:1")), &archive).await.unwrap();
        let status =
            Command::new("tar").arg("-xf").arg(&archive).arg("-C").arg(&tree).status().unwrap();
        assert!(status.success());
        let manifest = fs::read(tree.join("manifest.json")).unwrap();
        let mut list: Vec<serde_json::Value> = serde_json::from_slice(&manifest).unwrap();
        list[0]["RepoTags"] = serde_json::json!([format!("a/{name}:1")]);
        entries.append(&mut list);
    }
    fs::write(tree.join("manifest.json"), serde_json::to_vec(&entries).unwrap()).unwrap();
    let both = folder.join("both.tar");
    let status =
        Command::new("tar").arg("-cf").arg(&both).arg("-C").arg(&tree).arg(".").status().unwrap();
    assert!(status.success());
    both
}

#[tokio::test]
async fn the_stores_of_the_machines_users_are_not_touched() {
    let cache = Path::new("/var/lib/containers/cache");
    let state = || {
        fs::metadata(cache.join("blob-info-cache-v1.boltdb"))
            .map(|file| file.modified().unwrap())
            .ok()
    };
    let before = state();
    let (test, _) = TestStore::with_test_image().await;
    let archive = test.folder().join("a.tar");
    test.store().save(&image(TEST_HTTP), &archive).await.unwrap();
    test.store().load(&archive).await.unwrap();
    assert!(test.store().root().join("updraft-cache/containers/cache").is_dir());
    assert_eq!(state(), before);
}

#[tokio::test]
async fn what_is_no_archive_is_refused_with_its_reason() {
    let test = TestStore::new().await;
    let file = test.folder().join("file");
    let refused = async |content: &[u8]| {
        fs::write(&file, content).unwrap();
        test.store().load(&file).await.unwrap_err().to_string()
    };
    assert!(refused(b"not a tar").await.contains("cannot be loaded"));
    assert!(refused(&[0; 10_240]).await.contains("neither"));
    assert!(refused(&[0x1f, 0x8b, 8, 0]).await.contains("cannot be unpacked"));
    let missing = test.store().load(Path::new("/does/not/exist")).await.unwrap_err();
    assert!(missing.to_string().contains("/does/not/exist"), "{missing}");
}

#[tokio::test]
async fn a_missing_image_tells_how_to_get_it() {
    let test = TestStore::new().await;
    let error = test.store().ensure(&image("functions/none:1"), &|_: &str| ()).await.unwrap_err();
    assert!(matches!(error, ImageError::Missing { .. }));
    assert!(error.to_string().contains("updraft images load"), "{error}");
}

#[tokio::test]
async fn removing_takes_the_name_and_with_the_last_name_the_image() {
    let (test, made) = TestStore::with_test_image().await;
    let store = test.store();
    store.tag(&made, &image("localhost/second")).await.unwrap();
    assert!(store.remove(&image("second")).await.unwrap());
    assert!(store.resolve(&image(TEST_HTTP)).await.unwrap().is_some());
    assert!(store.remove(&image(TEST_HTTP)).await.unwrap());
    assert!(!store.remove(&image(TEST_HTTP)).await.unwrap());
    assert_eq!(store.list().await.unwrap(), []);
}

#[tokio::test]
async fn a_registry_that_does_not_answer_is_named_with_its_reason() {
    let test = TestStore::new().await;
    let root = test.store().root().to_owned();
    let store = ImageStore::open(ImageStoreOptions::new(root, test.store().run_root().to_owned()));
    let store = store.await.unwrap();
    let missing = image("127.0.0.1:1/team/function:1");
    let error = store.ensure(&missing, &|_: &str| ()).await.unwrap_err();
    assert!(matches!(error, ImageError::Missing { .. }), "{error:?}");
    assert!(error.to_string().contains("refused"), "{error}");
}

#[tokio::test]
async fn a_full_disk_is_told_before_anything_is_fetched() {
    let test = TestStore::new().await;
    let mut options =
        ImageStoreOptions::new(test.store().root().to_owned(), test.store().run_root().to_owned());
    options.free_bytes_min = u64::MAX;
    let store = ImageStore::open(options).await.unwrap();
    let error = store.ensure(&base::DEBIAN.image(), &|_: &str| ()).await.unwrap_err();
    assert!(matches!(error, ImageError::DiskFull { .. }), "{error}");
}

#[tokio::test]
async fn a_base_image_is_made_from_debian_packages_for_the_functions_user() {
    let test = TestStore::new().await;
    let made = test.add_base_image(&base::DEBIAN).await;
    let tree = test.store().mount(&made).await.unwrap();
    let users = fs::read_to_string(tree.join("etc/passwd")).unwrap();
    assert!(users.contains("app:x:12000:12000:"), "{users}");
    assert!(tree.join("usr/bin/apt-get").is_file());
    assert!(tree.join("etc/ssl/certs/ca-certificates.crt").is_file());
    assert!(!tree.join("usr/share/man/man1").is_dir());
    assert!(made.config.env.iter().any(|(name, _)| name == "PATH"));
    let quiet = |line: &str| panic!("{line}");
    let again = test.store().ensure(&image("updraft/debian"), &quiet).await.unwrap();
    assert_eq!(again.id, made.id);
}
