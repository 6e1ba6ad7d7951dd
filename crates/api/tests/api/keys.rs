//! The certificate for everybody, and the two questions for those who may ask them.

use std::collections::BTreeMap;

use jiff::Timestamp;
use updraft_api::client::fetch_certificate;
use updraft_seal::{
    Certificate, Document, Draft, Format, Limits, Scope, SealedSecret, SecretBytes, Template,
    parse_documents, seal,
};

use crate::harness::Host;

fn sealed(certificate: &Certificate, name: &str, namespace: &str, scope: Scope) -> SealedSecret {
    let draft = Draft {
        name: name.to_owned(),
        namespace: Some(namespace.to_owned()),
        scope,
        template: Template::default(),
        items: BTreeMap::from([(
            "key".to_owned(),
            SecretBytes::new(b"canary-of-the-api".to_vec()),
        )]),
    };
    seal(certificate, &draft, Timestamp::now()).unwrap()
}

async fn certificate(host: &Host) -> Certificate {
    let pem = fetch_certificate(&host.address.into(), "/v1/cert.pem").await.unwrap();
    Certificate::from_pem(&pem).unwrap()
}

#[tokio::test]
async fn an_owner_may_ask_about_their_own_strict_secrets_only() {
    let host = Host::start().await;
    let certificate = certificate(&host).await;
    let alice = host.client(&host.alice_token);
    let own = sealed(&certificate, "alice-a", "openfaas-fn", Scope::Strict);
    assert!(alice.verify(&own.to_text(Format::Yaml)).await.unwrap());
    for foreign in [
        sealed(&certificate, "bob-a", "openfaas-fn", Scope::Strict),
        sealed(&certificate, "alicea", "openfaas-fn", Scope::Strict),
        sealed(&certificate, "alice-", "openfaas-fn", Scope::Strict),
        sealed(&certificate, "alice-a", "openfaas", Scope::Strict),
        sealed(&certificate, "alice-a", "openfaas-fn", Scope::ClusterWide),
    ] {
        let text = foreign.to_text(Format::Json);
        // The administrator is asked first, so that alice's turn has come again.
        let admin = ask(|| async { host.admin().verify(&text).await }).await.unwrap();
        assert!(admin, "{text}");
        let refused = ask(|| async { alice.rotate(&text).await }).await.unwrap_err();
        assert_eq!(refused.status().unwrap(), 403, "{text}");
    }
}

/// Asks until the rate limit lets it through.
async fn ask<T, F>(question: impl Fn() -> F) -> Result<T, updraft_api::client::ClientError>
where
    F: Future<Output = Result<T, updraft_api::client::ClientError>>,
{
    loop {
        match question().await {
            Err(error) if error.status().is_some_and(|status| status == 429) => {
                tokio::task::yield_now().await;
            }
            answer => return answer,
        }
    }
}

#[tokio::test]
async fn a_rotated_secret_has_the_newest_key_and_no_plain_value() {
    let host = Host::start().await;
    let before = certificate(&host).await;
    let mut secret = sealed(&before, "alice-a", "openfaas-fn", Scope::Strict);
    let wide = "sealedsecrets.bitnami.com/cluster-wide".to_owned();
    secret.template.annotations.insert(wide.clone(), "true".to_owned());
    host.keys.renew(Timestamp::now()).unwrap();
    let alice = host.client(&host.alice_token);
    let rotated =
        ask(|| async { alice.rotate(&secret.to_text(Format::Yaml)).await }).await.unwrap();
    let text = String::from_utf8(rotated.to_vec()).unwrap();
    assert!(!text.contains("canary-of-the-api") && !text.contains("Y2FuYXJ5"), "{text}");
    let Document::Sealed(rotated) =
        parse_documents(text.as_bytes(), Limits::usual()).unwrap().remove(0)
    else {
        panic!("{text}");
    };
    assert_eq!((rotated.scope, rotated.name.as_str()), (Scope::Strict, "alice-a"));
    assert!(!rotated.template.annotations.contains_key(&wide), "{text}");
    let newest = host.keys.certificate().unwrap();
    assert_eq!(host.keys.opened_by(&rotated), [newest.fingerprint()]);
    assert_ne!(newest.fingerprint(), before.fingerprint());
}

#[tokio::test]
async fn a_secret_that_does_not_open_is_refused_without_a_reason() {
    let host = Host::start().await;
    let certificate = certificate(&host).await;
    let alice = host.client(&host.alice_token);
    let mut secret = sealed(&certificate, "alice-a", "openfaas-fn", Scope::Strict);
    secret.name = "alice-b".to_owned();
    let text = secret.to_text(Format::Yaml);
    assert!(!ask(|| async { alice.verify(&text).await }).await.unwrap());
    let refused = ask(|| async { alice.rotate(&text).await }).await.unwrap_err();
    assert_eq!(refused.to_string(), "no key could decrypt secret (key)");
    let nonsense = ask(|| async { alice.verify("a: [").await }).await.unwrap_err();
    assert_eq!(nonsense.status().unwrap(), 500);
    let two = format!("{text}{text}");
    assert_eq!(
        ask(|| async { alice.verify(&two).await }).await.unwrap_err().status().unwrap(),
        500
    );
}

#[tokio::test]
async fn questions_come_twice_a_second_at_most() {
    let host = Host::start().await;
    let certificate = certificate(&host).await;
    let alice = host.client(&host.alice_token);
    let text = sealed(&certificate, "alice-a", "openfaas-fn", Scope::Strict).to_text(Format::Json);
    let began = std::time::Instant::now();
    let mut answered = 0;
    let mut limited = 0;
    while began.elapsed() < std::time::Duration::from_secs(2) {
        match alice.verify(&text).await {
            Ok(true) => answered += 1,
            Err(error) if error.status().unwrap() == 429 => limited += 1,
            other => panic!("{other:?}"),
        }
    }
    let allowed = 3 + began.elapsed().as_millis() / 500;
    assert!(limited > 0 && answered <= allowed, "{answered} answered, {limited} limited");
}
