//! Authentication by tokens, against a small but honest issuer.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{SystemTime, UNIX_EPOCH};

use base64::Engine as _;
use base64::prelude::BASE64_URL_SAFE_NO_PAD;
use p256::ecdsa::signature::Signer as _;
use p256::ecdsa::{Signature, SigningKey};
use serde_json::{Value, json};

use crate::support::*;

/// Publishes its keys where watchdogs look for them, and signs tokens.
struct Issuer {
    url: String,
    /// Seeds of the published keys; the seed is the key's id, too.
    published: Arc<Mutex<Vec<u8>>>,
    fetches: Arc<AtomicUsize>,
}

fn key(seed: u8) -> SigningKey {
    SigningKey::from_slice(&[seed; 32]).unwrap()
}

fn encode(bytes: &[u8]) -> String {
    BASE64_URL_SAFE_NO_PAD.encode(bytes)
}

impl Issuer {
    fn start() -> Self {
        let published = Arc::new(Mutex::new(vec![1]));
        let fetches = Arc::new(AtomicUsize::new(0));
        let (keys, counter) = (Arc::clone(&published), Arc::clone(&fetches));
        let port = function(move |stream, head| {
            assert_eq!(header(head, "user-agent").unwrap(), "openfaas-watchdog");
            let host = header(head, "host").unwrap();
            let document = if head.starts_with("GET /.well-known/openid-configuration HTTP/1.1\r\n")
            {
                json!({ "issuer": format!("http://{host}"), "jwks_uri": format!("http://{host}/keys") })
            } else {
                assert!(head.starts_with("GET /keys HTTP/1.1\r\n"), "{head}");
                counter.fetch_add(1, Ordering::SeqCst);
                let keys: Vec<Value> = keys.lock().unwrap().iter().map(|&seed| jwk(seed)).collect();
                json!({ "keys": keys })
            };
            answer(stream, &document.to_string())
        });
        Self { url: format!("http://127.0.0.1:{port}"), published, fetches }
    }

    fn publish(&self, seeds: &[u8]) {
        *self.published.lock().unwrap() = seeds.to_vec();
    }

    fn fetches(&self) -> usize {
        self.fetches.load(Ordering::SeqCst)
    }

    /// A token that permits these functions, signed with this key.
    fn token(&self, seed: u8, permissions: &[&str]) -> String {
        self.sign(seed, &json!({ "permissions": permissions, "audience": [] }), 60)
    }

    fn sign(&self, seed: u8, function: &Value, valid_seconds: i64) -> String {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs();
        let end = i64::try_from(now).unwrap() + valid_seconds;
        let claims = json!({ "iss": self.url, "aud": [self.url], "exp": end, "iat": now, "function": function });
        let header = json!({ "alg": "ES256", "typ": "JWT", "kid": seed.to_string() });
        let part = |value: &Value| encode(value.to_string().as_bytes());
        let signed = format!("{}.{}", part(&header), part(&claims));
        let signature: Signature = key(seed).sign(signed.as_bytes());
        format!("{signed}.{}", encode(&signature.to_bytes()))
    }

    fn variables<'a>(&'a self, more: &[(&'a str, &'a str)]) -> Vec<(&'a str, &'a str)> {
        let mut all = vec![
            ("jwt_auth", "true"),
            ("jwt_auth_authority", self.url.as_str()),
            ("OPENFAAS_NAME", "env"),
            ("OPENFAAS_NAMESPACE", "dev"),
        ];
        all.extend_from_slice(more);
        all
    }

    /// A watchdog that asks this issuer.
    fn watchdog(&self, more: &[(&str, &str)]) -> Watchdog {
        let mut all = vec![("fprocess", "env")];
        all.extend_from_slice(more);
        let watchdog = Watchdog::start(&self.variables(&all));
        watchdog.wait_healthy();
        watchdog
    }
}

fn jwk(seed: u8) -> Value {
    let point = key(seed).verifying_key().to_sec1_point(false);
    json!({
        "kty": "EC", "crv": "P-256", "use": "sig", "alg": "ES256", "kid": seed.to_string(),
        "x": encode(point.x().unwrap()), "y": encode(point.y().unwrap()),
    })
}

fn call(watchdog: &Watchdog, token: &str) -> Reply {
    watchdog.get_with("/hello?x=1", &format!("Authorization: Bearer {token}\r\n"))
}

#[test]
fn a_permitted_caller_passes_and_the_function_learns_what_the_check_took() {
    let issuer = Issuer::start();
    let watchdog = issuer.watchdog(&[]);
    for permission in ["dev:env", "dev:*", "*:env", "*"] {
        let reply = call(&watchdog, &issuer.token(1, &[permission]));
        assert_eq!(reply.status, 200, "{reply:?}");
        let line = reply.body.lines().find(|line| line.starts_with("Http_X_Auth_Seconds="));
        let seconds: f64 = line.unwrap().split_once('=').unwrap().1.parse().unwrap();
        assert!(seconds > 0.0 && seconds < 5.0, "{seconds}");
    }
    assert_eq!(issuer.fetches(), 1);
}

#[test]
fn no_token_and_a_bad_one_are_401_with_the_realm_that_the_cli_looks_for() {
    let issuer = Issuer::start();
    let watchdog = issuer.watchdog(&[]);
    let good = issuer.token(1, &["*"]);
    let forged = format!("{}{}", &good[..good.len() - 4], "AAAA");
    let expired = issuer.sign(1, &json!({ "permissions": ["*"] }), -2);
    for authorization in [
        String::new(),
        "Authorization: Basic YTpi\r\n".to_owned(),
        "Authorization: Bearer \r\n".to_owned(),
        "Authorization: Bearer junk\r\n".to_owned(),
        format!("Authorization: Bearer {forged}\r\n"),
        format!("Authorization: Bearer {expired}\r\n"),
    ] {
        let reply = watchdog.get_with("/hello?x=1", &authorization);
        assert_eq!(reply.status, 401, "{authorization}");
        assert_eq!(reply.header("www-authenticate").unwrap(), "Bearer realm=IAM function invoke");
        assert_eq!(reply.header("x-openfaas-internal").unwrap(), "faas-middleware");
        assert!(reply.header("content-type").unwrap().starts_with("text/plain"));
        assert!(reply.body.starts_with("the "), "{}", reply.body);
    }
    let line = watchdog.wait_line("GET /hello - 401 ACCESS DENIED - (");
    assert!(line.ends_with("s)"), "{line}");
}

#[test]
fn a_token_for_other_functions_is_403() {
    let issuer = Issuer::start();
    let watchdog = issuer.watchdog(&[]);
    let tokens = [
        issuer.token(1, &[]),
        issuer.token(1, &["prod:env", "dev:other"]),
        // Permissions stand for whole names.
        issuer.token(1, &["dev:en", "ev:env", "dev:env-admin", "*:en"]),
        issuer.sign(1, &json!({ "permissions": ["*"], "audience": ["dev:other"] }), 60),
        issuer.sign(1, &json!({}), 60),
    ];
    for token in tokens {
        let reply = call(&watchdog, &token);
        assert_eq!((reply.status, reply.body.as_str()), (403, "insufficient permissions"));
        assert_eq!(reply.header("x-openfaas-internal").unwrap(), "faas-middleware");
        assert_eq!(reply.header("www-authenticate"), None);
    }
    let meant = issuer.sign(1, &json!({ "permissions": ["*"], "audience": ["dev:env"] }), 60);
    assert_eq!(call(&watchdog, &meant).status, 200);
    watchdog.wait_line("GET /hello - 403 ACCESS DENIED - (");
}

#[test]
fn a_new_key_is_fetched_when_a_token_names_it_but_unknown_ones_do_not_flood_the_issuer() {
    let issuer = Issuer::start();
    let watchdog = issuer.watchdog(&[]);
    issuer.publish(&[1, 2]);
    assert_eq!(call(&watchdog, &issuer.token(2, &["*"])).status, 200);
    assert_eq!(issuer.fetches(), 2);
    for seed in 3..20 {
        assert_eq!(call(&watchdog, &issuer.token(seed, &["*"])).status, 401);
    }
    assert_eq!(issuer.fetches(), 2);
    assert_eq!(call(&watchdog, &issuer.token(1, &["*"])).status, 200);
}

#[test]
fn a_key_that_is_no_longer_published_signs_nothing_any_more() {
    let issuer = Issuer::start();
    let watchdog = issuer.watchdog(&[("updraft_jwt_refresh", "50ms")]);
    let token = issuer.token(1, &["*"]);
    assert_eq!(call(&watchdog, &token).status, 200);
    issuer.publish(&[2]);
    wait_until("the old key is forgotten", || call(&watchdog, &token).status == 401);
    assert_eq!(call(&watchdog, &issuer.token(2, &["*"])).status, 200);
    // An issuer without keys is an error that changes nothing.
    issuer.publish(&[]);
    watchdog.wait_line("cannot refresh the keys of jwt_auth, the known ones stay");
    assert_eq!(call(&watchdog, &issuer.token(2, &["*"])).status, 200);
}

#[test]
fn a_start_without_keys_fails_and_says_why() {
    let check = |url: &str, reason: &str| {
        let variables = [
            ("fprocess", "cat"),
            ("jwt_auth", "true"),
            ("jwt_auth_authority", url),
            ("OPENFAAS_NAME", "env"),
            ("OPENFAAS_NAMESPACE", "dev"),
        ];
        let (code, text) = run_to_end(&[], &variables);
        assert_eq!(code, Some(1));
        assert!(text.contains("cannot start jwt_auth: ") && text.contains(reason), "{text}");
    };
    let free = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    check(&format!("http://{free}"), "cannot reach `http://127.0.0.1:");
    let no_name = format!("http://{}", "x".repeat(64));
    check(&no_name, "is no host name");
    let serving = |text: String| {
        let port = function(move |stream, _| write(stream, &text));
        format!("http://127.0.0.1:{port}")
    };
    let document = |body: &str| {
        serving(format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n{body}", body.len()))
    };
    check(&serving("HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n".into()), "answered 404");
    check(&document("[]"), "is not what was expected");
    check(&document(&"x".repeat(300 * 1024)), "larger than 262144 bytes");
    let https = json!({ "issuer": "x", "jwks_uri": "https://127.0.0.1:1/keys" });
    check(&document(&https.to_string()), "must begin with `http://`");
    let issuer = Issuer::start();
    issuer.publish(&[]);
    check(&issuer.url, "lists no key for ES256");
}

#[test]
fn a_full_watchdog_says_so_first_and_a_classic_one_asks_for_the_token_first() {
    for (mode, status) in [("streaming", 429), ("classic", 401)] {
        let issuer = Issuer::start();
        let folder = tempfile::tempdir().unwrap();
        let script = folder.path().join("function.sh");
        let waiting = "touch $TMPDIR/started; while [ ! -e $TMPDIR/go ]; do sleep 0.01; done";
        std::fs::write(&script, waiting).unwrap();
        let process = format!("sh {}", script.display());
        let more = [("fprocess", process.as_str()), ("mode", mode), ("max_inflight", "1")];
        let watchdog = Watchdog::start_in(folder, &issuer.variables(&more));
        std::thread::scope(|scope| {
            let first = scope.spawn(|| call(&watchdog, &issuer.token(1, &["*"])));
            wait_until("it runs", || watchdog.folder.path().join("started").exists());
            assert_eq!(watchdog.get("/").status, status, "{mode}");
            assert_eq!(call(&watchdog, &issuer.token(1, &["*"])).status, 429);
            std::fs::write(watchdog.folder.path().join("go"), "").unwrap();
            assert_eq!(first.join().unwrap().status, 200);
        });
    }
}

#[test]
fn a_refused_caller_takes_no_place() {
    let issuer = Issuer::start();
    let watchdog = issuer.watchdog(&[("max_inflight", "1")]);
    for _ in 0..5 {
        assert_eq!(watchdog.get("/").status, 401);
    }
    assert_eq!(call(&watchdog, &issuer.token(1, &["*"])).status, 200);
}

#[test]
fn probes_need_no_token() {
    let issuer = Issuer::start();
    let watchdog = issuer.watchdog(&[("ready_path", "/warm")]);
    assert_eq!(watchdog.get("/_/health").status, 200);
    let reply = watchdog.get("/_/ready");
    assert_eq!(reply.status, 200);
    assert!(reply.body.contains("Http_Path=/warm\n"), "{}", reply.body);
}

#[test]
fn jwt_auth_debug_tells_why_and_never_the_token() {
    let issuer = Issuer::start();
    let watchdog = issuer.watchdog(&[("jwt_auth_debug", "true")]);
    let token = issuer.token(1, &["prod:*"]);
    call(&watchdog, &token);
    watchdog.wait_line("jwt_auth: dev:env is asked for, permissions: [\"prod:*\"], audience: []");
    watchdog.wait_line("jwt_auth: refused: insufficient permissions");
    watchdog.get("/");
    watchdog.wait_line("jwt_auth: refused: the request has no bearer token");
    assert!(!watchdog.lines().iter().any(|line| line.contains(&token[..20])));
}
