//! Logging in with a credentials file, as `nsc` makes it: the user's token, signed by an account,
//! which an operator has signed, and the user's seed.

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use nkeys::KeyPair;
use serde_json::{Value, json};
use updraft_queue_nats::{NatsCallStore, NatsFinding, NatsLogin, examine};

use crate::server::NatsServer;
use crate::{options, works, write};

/// A token about `subject`, signed by `issuer`.
fn token(issuer: &KeyPair, subject: &KeyPair, about: &Value) -> String {
    let head = json!({"typ": "JWT", "alg": "ed25519-nkey"});
    let claims = json!({
        "jti": "test", "iat": 1_700_000_000, "iss": issuer.public_key(), "name": "test",
        "sub": subject.public_key(), "nats": about,
    });
    let part = |value: &Value| URL_SAFE_NO_PAD.encode(value.to_string());
    let signed = format!("{}.{}", part(&head), part(&claims));
    let signature = issuer.sign(signed.as_bytes()).unwrap();
    format!("{signed}.{}", URL_SAFE_NO_PAD.encode(signature))
}

fn account(storage: i64) -> Value {
    json!({"type": "account", "version": 2, "default_permissions": {"pub": {}, "sub": {}},
    "limits": {
        "subs": -1, "data": -1, "payload": -1, "imports": -1, "exports": -1, "conn": -1,
        "leaf": -1, "wildcards": true, "streams": storage, "consumer": storage,
        "mem_storage": storage, "disk_storage": storage,
    }})
}

fn credentials(token: &str, user: &KeyPair) -> String {
    let seed = user.seed().unwrap();
    format!(
        "-----BEGIN NATS USER JWT-----\n{token}\n------END NATS USER JWT------\n\n\
         -----BEGIN USER NKEY SEED-----\n{seed}\n------END USER NKEY SEED------\n"
    )
}

#[tokio::test]
async fn a_credentials_file_opens_the_door_and_one_of_somebody_else_does_not() {
    let (operator, system) = (KeyPair::new_operator(), KeyPair::new_account());
    let (ours, user, stranger) =
        (KeyPair::new_account(), KeyPair::new_user(), KeyPair::new_account());
    let config = format!(
        "operator: {}\nsystem_account: {}\nresolver: MEMORY\n\
         resolver_preload: {{\n{}: {}\n{}: {}\n}}\n",
        token(&operator, &operator, &json!({"type": "operator", "version": 2})),
        system.public_key(),
        system.public_key(),
        token(&operator, &system, &account(0)),
        ours.public_key(),
        token(&operator, &ours, &account(-1)),
    );
    let folder = tempfile::tempdir().unwrap();
    let config = write(folder.path(), "operator.conf", &config);
    let server = NatsServer::start_with(&["--config", config.to_str().unwrap()]);

    let about = json!({"type": "user", "version": 2, "pub": {}, "sub": {}, "subs": -1,
        "data": -1, "payload": -1});
    let right = credentials(&token(&ours, &user, &about), &user);
    let right = NatsLogin::Credentials(write(folder.path(), "right.creds", &right));
    let opened = options(server.url(), folder.path(), right);
    works(&NatsCallStore::open(opened.clone()).await.unwrap()).await;

    let wrong = credentials(&token(&stranger, &user, &about), &user);
    let wrong = NatsLogin::Credentials(write(folder.path(), "wrong.creds", &wrong));
    let found = examine(&options(server.url(), folder.path(), wrong)).await;
    assert!(matches!(found, NatsFinding::Missing(..)), "{found:?}");
    let seed = user.seed().unwrap();
    assert!(!format!("{found:?} {opened:?}").contains(&seed), "a seed is never printed");
}
