use super::*;
use crate::document::Place;
use crate::unseal::Hints;
use crate::{
    BackupFrom, BackupTo, Draft, Limits, Scope, SealedSecret, SecretBytes, Template, back_up,
    export_keys, import_keys, read_backup, seal,
};
use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use zeroize::Zeroizing;

const CANARY: &[u8] = b"canary-value-of-the-key-ring";

struct World {
    folder: tempfile::TempDir,
}

impl World {
    fn new() -> Self {
        Self { folder: tempfile::tempdir().unwrap() }
    }

    fn options(&self) -> KeyRingOptions {
        KeyRingOptions {
            key_bits: 2048,
            ..KeyRingOptions::usual(self.folder.path().join("secrets/machine.key"))
        }
    }

    fn keys(&self) -> PathBuf {
        self.folder.path().join("keys")
    }

    fn open(&self) -> KeyRing {
        KeyRing::open(&self.keys(), self.options()).unwrap()
    }
}

fn sealed(certificate: &Certificate, name: &str) -> SealedSecret {
    let draft = Draft {
        name: name.to_owned(),
        namespace: Some("openfaas-fn".to_owned()),
        scope: Scope::Strict,
        template: Template::default(),
        items: BTreeMap::from([("key".to_owned(), SecretBytes::new(CANARY.to_vec()))]),
    };
    seal(certificate, &draft, Timestamp::now()).unwrap()
}

fn opens(ring: &KeyRing, secret: &SealedSecret) -> bool {
    ring.unseal(secret).is_ok_and(|opened| opened.items["key"].expose() == CANARY)
}

#[test]
fn a_first_key_is_made_and_found_again() {
    let world = World::new();
    let first = world.open();
    let secret = sealed(&first.certificate().unwrap(), "alice-a");
    drop(first);
    let second = world.open();
    assert_eq!(second.list().len(), 1);
    assert!(opens(&second, &secret));
}

#[test]
fn a_renewal_changes_the_certificate_and_opens_everything_from_before() {
    let world = World::new();
    let ring = world.open();
    let before = ring.certificate().unwrap();
    let secret = sealed(&before, "alice-a");
    let after = ring.renew(Timestamp::now()).unwrap();
    assert_ne!(before.fingerprint(), after.fingerprint());
    assert_eq!(ring.certificate().unwrap().fingerprint(), after.fingerprint());
    assert!(opens(&ring, &secret));

    let again = ring.reseal(&secret).unwrap();
    assert!(opens(&ring, &again));
    assert_eq!(ring.opened_by(&again), [after.fingerprint()]);
    assert_eq!(ring.opened_by(&secret), [before.fingerprint()]);
}

#[test]
fn a_renewal_is_due_by_age_by_cutoff_and_never_without_a_period() {
    let world = World::new();
    let ring = world.open();
    let now = Timestamp::now();
    let day = Duration::from_hours(24);
    let due = ring.renewal_due_in(now).unwrap();
    assert!(due > 29 * day && due <= 30 * day, "{due:?}");
    assert!(ring.renew_if_due(now + 29 * day).unwrap().is_none());
    assert!(ring.renew_if_due(now + 31 * day).unwrap().is_some());
    assert_eq!(ring.list().len(), 2);

    let never = KeyRingOptions { renew_after: None, ..world.options() };
    let never = KeyRing::open(&world.keys(), never).unwrap();
    assert_eq!(never.renewal_due_in(now + 3000 * day), None);

    let cutoff = KeyRingOptions { cutoff: Some(now + 60 * day), ..world.options() };
    assert_eq!(
        KeyRing::open(&world.keys(), KeyRingOptions { make: false, ..cutoff })
            .unwrap()
            .renewal_due_in(now),
        Some(Duration::ZERO)
    );
}

#[test]
fn a_key_out_of_use_opens_nothing_and_says_so() {
    let world = World::new();
    let ring = world.open();
    let before = ring.certificate().unwrap();
    let secret = sealed(&before, "alice-a");
    let refused = ring.set_state(before.fingerprint(), KeyState::Retired).unwrap_err();
    assert!(refused.to_string().contains("updraft keys renew"), "{refused}");
    ring.renew(Timestamp::now()).unwrap();
    let short = &before.fingerprint()["SHA256:".len()..][..8];
    ring.set_state(short, KeyState::Compromised).unwrap();
    let error = ring.unseal(&secret).unwrap_err();
    assert!(error.to_string().contains("taken out of use"), "{error}");
    assert!(ring.reseal(&secret).is_err());

    let reopened = world.open();
    let state = reopened.list().into_iter().find(|info| info.fingerprint == before.fingerprint());
    assert_eq!(state.unwrap().state, KeyState::Compromised);
    reopened.set_state(before.fingerprint(), KeyState::Active).unwrap();
    assert!(opens(&reopened, &secret));
}

#[test]
fn another_process_that_changes_the_folder_is_noticed() {
    let world = World::new();
    let (one, other) = (world.open(), world.open());
    let new = other.renew(Timestamp::now()).unwrap();
    assert_eq!(one.certificate().unwrap().fingerprint(), new.fingerprint());
    assert!(opens(&one, &sealed(&new, "alice-a")));
}

#[test]
fn files_are_for_this_user_alone_and_hold_no_key_in_the_clear() {
    use std::os::unix::fs::PermissionsExt;
    let world = World::new();
    let ring = world.open();
    let mode = |path: &Path| fs::metadata(path).unwrap().permissions().mode() & 0o777;
    assert_eq!(mode(&world.keys()), 0o700);
    assert_eq!(mode(&world.options().machine_key), 0o600);
    for name in file::names(&world.keys()).unwrap() {
        let path = world.keys().join(name);
        assert_eq!(mode(&path), 0o600);
        let text = fs::read_to_string(&path).unwrap();
        assert!(!text.contains("PRIVATE KEY"), "{text}");
        let pem = ring.pairs()[0].private.to_pem();
        assert!(!text.contains(pem.lines().nth(3).unwrap()));
    }
    let shown = format!("{ring:?} {:?}", ring.pairs());
    assert!(!shown.contains("PRIVATE KEY"), "{shown}");
}

#[test]
fn what_was_damaged_or_lost_stops_the_start_with_a_way_out() {
    let world = World::new();
    let secret = sealed(&world.open().certificate().unwrap(), "alice-a");
    let name = file::names(&world.keys()).unwrap().remove(0);
    let path = world.keys().join(&name);
    let good = fs::read_to_string(&path).unwrap();
    let open = || KeyRing::open(&world.keys(), world.options());

    fs::write(&path, good.replace("\"active\"", "\"retired\"")).unwrap();
    let error = open().unwrap_err().to_string();
    assert!(error.contains(&name) && error.contains("restore a backup"), "{error}");
    fs::write(&path, &good[..good.len() / 2]).unwrap();
    assert!(open().is_err());
    fs::write(&path, &good).unwrap();

    let machine_key = world.options().machine_key;
    let kept = fs::read(&machine_key).unwrap();
    fs::remove_file(&machine_key).unwrap();
    let error = open().unwrap_err().to_string();
    assert!(error.contains("machine.key") && error.contains("missing"), "{error}");
    assert!(!machine_key.exists(), "a lost key is not replaced in silence");
    fs::write(&machine_key, kept).unwrap();
    assert!(opens(&open().unwrap(), &secret));
}

#[test]
fn a_backup_opens_everything_on_an_empty_machine() {
    let burnt = World::new();
    let ring = burnt.open();
    let first = sealed(&ring.certificate().unwrap(), "alice-a");
    let second = sealed(&ring.renew(Timestamp::now()).unwrap(), "alice-b");
    let passphrase = || Zeroizing::new("correct horse battery staple".to_owned());
    let backup = back_up(&ring.pairs(), &BackupTo::Passphrase(passphrase())).unwrap();
    assert!(backup.starts_with("-----BEGIN AGE ENCRYPTED FILE-----"), "{backup}");

    let fresh = World::new();
    let ring = fresh.open();
    assert!(!opens(&ring, &first));
    let wrong = BackupFrom::Passphrase(Zeroizing::new("another passphrase".to_owned()));
    let error = read_backup(backup.as_bytes(), &wrong).unwrap_err();
    assert!(error.to_string().contains("passphrase"), "{error}");
    let pairs = read_backup(backup.as_bytes(), &BackupFrom::Passphrase(passphrase())).unwrap();
    assert_eq!(ring.add(&pairs).unwrap(), 2);
    assert_eq!(ring.add(&pairs).unwrap(), 0, "twice is as good as once");
    assert!(opens(&ring, &first) && opens(&ring, &second));
}

#[test]
fn a_backup_to_an_age_recipient_needs_its_identity() {
    use age::secrecy::ExposeSecret;
    let world = World::new();
    let identity = age::x25519::Identity::generate();
    let recipient = BackupTo::Recipient(identity.to_public().to_string());
    let backup = back_up(&world.open().pairs(), &recipient).unwrap();
    let text = format!("# created\n{}\n", identity.to_string().expose_secret());
    let from = BackupFrom::Identity(Zeroizing::new(text));
    assert_eq!(read_backup(backup.as_bytes(), &from).unwrap().len(), 1);
    let other = age::x25519::Identity::generate();
    let from = BackupFrom::Identity(Zeroizing::new(other.to_string().expose_secret().to_owned()));
    assert!(read_backup(backup.as_bytes(), &from).is_err());
    let cut = &backup[..backup.len() / 2];
    assert!(read_backup(cut.as_bytes(), &from).is_err());
    assert!(back_up(&[], &recipient).is_err());
    let short = BackupTo::Passphrase(Zeroizing::new("short".to_owned()));
    assert!(back_up(&world.open().pairs(), &short).is_err());
}

#[test]
fn keys_of_a_cluster_come_and_go_as_its_secrets() {
    let world = World::new();
    let ring = world.open();
    let secret = sealed(&ring.certificate().unwrap(), "alice-a");
    ring.renew(Timestamp::now()).unwrap();
    let listed = ring.list();
    ring.set_state(&listed[1].fingerprint, KeyState::Compromised).unwrap();
    let exported = export_keys(&ring.pairs(), "flux");
    let pairs = import_keys(exported.as_bytes()).unwrap();
    assert_eq!(
        pairs.iter().map(|pair| pair.state).collect::<Vec<_>>(),
        [KeyState::Active, KeyState::Compromised]
    );

    let elsewhere = World::new();
    let other =
        KeyRing::open(&elsewhere.keys(), KeyRingOptions { make: false, ..elsewhere.options() })
            .unwrap();
    assert!(matches!(other.certificate(), Err(KeyRingError::Empty)));
    other.add(&pairs).unwrap();
    assert!(!opens(&other, &secret), "what was compromised stays so");
    assert_eq!(other.certificate().unwrap().fingerprint(), listed[0].fingerprint);
}

#[test]
fn the_seed_of_a_cluster_and_bare_pem_files_are_taken_in() {
    use base64::Engine;
    let pem = include_str!("../../tests/vectors/test.pem");
    let key = PrivateKey::from_pem(pem.as_bytes()).unwrap();
    let lifetime = SignedDuration::from_hours(24);
    let certificate = key.certify("", Timestamp::now(), lifetime).unwrap();
    let encode = |text: &str| base64::engine::general_purpose::STANDARD.encode(text);
    let seed = format!(
        "apiVersion: v1\ndata:\n  tls.crt: {}\n  tls.key: {}\nkind: Secret\nmetadata:\n  \
         creationTimestamp: null\n  name: sealed-secrets-key\n  namespace: flux\ntype: kubernetes.io/tls\n",
        encode(certificate.to_pem()),
        encode(pem)
    );
    let check = |bytes: &str| {
        let pairs = import_keys(bytes.as_bytes()).unwrap();
        assert_eq!(pairs.len(), 1);
        assert_eq!(pairs[0].private.fingerprint(), key.fingerprint());
        assert_eq!(pairs[0].state, KeyState::Active);
    };
    check(&seed);
    check(pem);
    check(&format!("{}{pem}", certificate.to_pem()));
    let other =
        PrivateKey::generate(2048).unwrap().certify("", Timestamp::now(), lifetime).unwrap();
    let mixed = format!("{pem}{}", other.to_pem());
    assert!(matches!(import_keys(mixed.as_bytes()), Err(crate::ImportError::Mismatch { .. })));
    assert!(matches!(
        import_keys(b"apiVersion: v1\nkind: Secret\n"),
        Err(crate::ImportError::Empty)
    ));
}

#[test]
fn resealing_does_not_widen_a_scope_that_the_template_smuggles_in() {
    let world = World::new();
    let ring = world.open();
    let mut secret = sealed(&ring.certificate().unwrap(), "alice-a");
    let wide = "sealedsecrets.bitnami.com/cluster-wide".to_owned();
    secret.template.annotations.insert(wide.clone(), "true".to_owned());
    let again = ring.reseal(&secret).unwrap();
    assert_eq!((again.scope, again.name.as_str()), (Scope::Strict, "alice-a"));
    assert!(
        !again.annotations.contains_key(&wide) && !again.template.annotations.contains_key(&wide)
    );
    let other = SealedSecret { name: "mallory-a".to_owned(), ..again.clone() };
    assert!(ring.unseal(&other).is_err());
    let wider = SealedSecret { scope: Scope::ClusterWide, ..again };
    assert!(ring.unseal(&wider).is_err());
}

#[test]
fn a_file_of_a_thousand_broken_items_costs_few_operations() {
    let world = World::new();
    let ring = world.open();
    let mut secret = sealed(&ring.certificate().unwrap(), "alice-a");
    let foreign = secret.items["key"].clone();
    secret.name = "alice-b".to_owned();
    secret.items = (0..1000).map(|index| (format!("k{index:04}"), foreign.clone())).collect();
    let error = ring.unseal(&secret).unwrap_err();
    assert_eq!(error.failures.len(), 1000);
    let tried = error
        .failures
        .iter()
        .filter(|failure| !failure.why.to_string().contains("not tried, because"));
    assert_eq!(tried.count(), 20);
    assert!(error.opaque().starts_with("no key could decrypt secret (k0000, k0001"));
}

#[test]
fn renewals_in_the_middle_of_many_openings_lose_none() {
    let world = World::new();
    let ring = Arc::new(world.open());
    let secret = sealed(&ring.certificate().unwrap(), "alice-a");
    let (done, opened) = (AtomicBool::new(false), AtomicUsize::new(0));
    std::thread::scope(|scope| {
        for _ in 0..3 {
            scope.spawn(|| {
                while !done.load(Ordering::Relaxed) || opened.load(Ordering::Relaxed) < 100 {
                    assert!(opens(&ring, &secret), "an opening failed beside a renewal");
                    let newest = ring.certificate().unwrap();
                    assert!(opens(&ring, &sealed(&newest, "alice-b")));
                    opened.fetch_add(1, Ordering::Relaxed);
                }
            });
        }
        for _ in 0..3 {
            ring.renew(Timestamp::now()).unwrap();
        }
        done.store(true, Ordering::Relaxed);
    });
    assert!(opened.load(Ordering::Relaxed) >= 100);
    assert_eq!(ring.list().len(), 4);
}

#[test]
fn the_items_of_old_controllers_open_and_are_sealed_again_as_items() {
    let world = World::new();
    let ring = world.open();
    let inside = format!(
        "{{\"apiVersion\":\"v1\",\"kind\":\"Secret\",\"type\":\"Opaque\",\"metadata\":{{\"name\":\"x\",\"labels\":{{\"a\":\"b\"}}}},\"data\":{{\"key\":\"{}\"}}}}",
        base64::Engine::encode(&base64::engine::general_purpose::STANDARD, CANARY)
    );
    let label = b"openfaas-fn/alice-a";
    let value = crate::seal_value(&ring.certificate().unwrap(), label, inside.as_bytes()).unwrap();
    let mut secret = sealed(&ring.certificate().unwrap(), "alice-a");
    secret.items.clear();
    secret.legacy = Some(crate::LegacyData(value));
    let opened = ring.unseal(&secret).unwrap();
    assert_eq!((opened.name.as_str(), opened.labels["a"].as_str()), ("alice-a", "b"));
    let again = ring.reseal(&secret).unwrap();
    assert!(again.legacy.is_none() && opens(&ring, &again));
    assert_eq!(again.place, Place { document: 1, item: None, line: 0 });
}

#[test]
fn what_a_key_opened_is_known_until_it_is_sealed_again_or_gone() {
    let world = World::new();
    let ring = world.open();
    let old = ring.find(&ring.list()[0].fingerprint).unwrap().fingerprint;
    let opened = |ring: &KeyRing, name: &str| {
        let secret = sealed(&ring.certificate().unwrap(), name);
        (name.to_owned(), Some(ring.unseal(&secret).unwrap().opened_by))
    };
    assert!(ring.uses(&old).unwrap().is_empty());
    ring.note_uses(&[opened(&ring, "alice-a"), opened(&ring, "alice-b")].into()).unwrap();
    assert_eq!(ring.uses(&old).unwrap(), ["alice-a", "alice-b"]);
    ring.renew(Timestamp::now()).unwrap();
    ring.note_uses(&[opened(&ring, "alice-a")].into()).unwrap();
    // Another process sees it too, and so does the next start.
    assert_eq!(world.open().uses(&old).unwrap(), ["alice-b"]);
    ring.note_uses(&[("alice-b".to_owned(), None)].into()).unwrap();
    assert!(ring.uses(&old).unwrap().is_empty());
    assert_eq!(ring.uses(&ring.list()[0].fingerprint).unwrap(), ["alice-a"]);
    assert_eq!(world.open().list().len(), 2, "the file beside the keys is no key");
}

#[test]
fn the_key_that_opened_a_secret_is_tried_first_the_next_time() {
    let world = World::new();
    let ring = world.open();
    let old = sealed(&ring.certificate().unwrap(), "alice-a");
    let beside = sealed(&ring.certificate().unwrap(), "alice-b");
    for _ in 0..3 {
        ring.renew(Timestamp::now()).unwrap();
    }
    let first = |secret: &SealedSecret| {
        let mut first = String::new();
        let opened = ring.with_keys(secret, |keys| {
            keys[0].key.fingerprint().clone_into(&mut first);
            crate::unseal::open_items(keys, secret, &Hints::default(), Limits::usual())
        });
        (first, opened.unwrap().opened_by.pop_first().unwrap())
    };
    let (tried, opener) = first(&old);
    assert_ne!(tried, opener, "nothing is known yet: the newest is tried first");
    assert_eq!(first(&old), (opener.clone(), opener.clone()));
    assert_eq!(first(&beside), (opener.clone(), opener), "what lies beside it is like it");
}

#[test]
fn keys_whose_files_stay_the_same_are_not_read_again() {
    let world = World::new();
    let ring = world.open();
    let before = ring.pairs();
    world.open().renew(Timestamp::now()).unwrap();
    let after = ring.pairs();
    assert_eq!(after.len(), 2);
    let same = |pair: &KeyPair| Arc::ptr_eq(&pair.private, &before[0].private);
    assert_eq!(after.iter().filter(|pair| same(pair)).count(), 1);
}
