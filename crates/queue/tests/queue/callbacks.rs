//! Telling whoever asked to be told.

use std::sync::Arc;
use std::time::Duration;

use http::Response;
use http_body_util::Full;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use rustls::pki_types::{PrivateKeyDer, PrivatePkcs8KeyDer};
use tokio_rustls::TlsAcceptor;
use updraft_model::annotations;
use updraft_queue::{
    CallId, CallState, CallbackOptions, CallbackRecord, CallbackState, NewCall, QueueOptions,
};

use crate::house::{Asked, House, KEY, Server, find, new_call, owned, quick, spec};

fn told_at(function: &str, url: &str) -> NewCall {
    NewCall { callback: Some(url.parse().unwrap()), ..new_call(function) }
}

async fn callback(house: &House, id: &CallId, state: CallbackState) -> CallbackRecord {
    find(&format!("the callback to be {state}"), async || {
        let callback = house.call(id).await.callback.unwrap();
        (callback.state == state).then_some(callback)
    })
    .await
}

/// What a receiver computes, by the documentation.
fn expected_signature(asked: &Asked, key: &str) -> String {
    use hmac::{Hmac, KeyInit, Mac};
    let given = asked.header("x-updraft-signature");
    let time = given.strip_prefix("t=").unwrap().split(',').next().unwrap();
    let (id, status) = (asked.header("x-call-id"), asked.header("x-function-status"));
    let mut mac = Hmac::<sha2::Sha256>::new_from_slice(key.as_bytes()).unwrap();
    mac.update(format!("{time}.{id}.{status}.").as_bytes());
    mac.update(&asked.body);
    format!("t={time},v1={}", hex::encode(mac.finalize().into_bytes()))
}

#[tokio::test]
async fn the_answer_is_told_with_its_headers_and_a_signature() {
    let house = House::new().await;
    let function = Server::start(async |_, _| {
        let answer = Response::builder().status(201).header("content-type", "text/x-made");
        let answer = answer.header("set-cookie", "a=b").header("x-own", "kept");
        answer.body(Full::from("made")).unwrap()
    })
    .await;
    let receiver = Server::statuses(&[202]).await;
    house.put(owned("alice", "f"), function.endpoint()).await;
    let url = format!("http://{}/hook?a=%20b", receiver.address);
    let call = house.submit(told_at("alice-f", &url), "").await.unwrap();
    callback(&house, &call, CallbackState::Delivered).await;
    let told = &receiver.asked()[0];
    assert_eq!((told.method.as_str(), told.target.as_str()), ("POST", "/hook?a=%20b"));
    assert_eq!(&told.body[..], b"made");
    assert_eq!(told.header("x-call-id"), call.as_str());
    assert_eq!(told.header("x-function-status"), "201");
    assert_eq!(told.header("x-function-name"), "alice-f");
    assert_eq!(told.header("content-type"), "text/x-made");
    assert_eq!(told.header("x-own"), "kept");
    assert_eq!(told.header("user-agent"), "updraft/1.2.3");
    assert_eq!(told.header("host"), receiver.address.to_string());
    assert!(told.header("x-duration-seconds").parse::<f64>().unwrap() > 0.0);
    assert!(told.header("x-start-time").parse::<u64>().unwrap() > 1_000_000_000_000_000_000);
    assert_eq!(told.header("set-cookie"), "");
    assert_eq!(told.header("x-retry"), "");
    let key = KEY.of("alice".parse().ok().as_ref());
    assert_eq!(told.header("x-updraft-signature"), expected_signature(told, key.expose()));
}

#[tokio::test]
async fn a_function_with_keys_of_its_own_signs_with_each_and_says_nothing_without_one() {
    let house = House::new().await;
    let function = Server::statuses(&[200]).await;
    let receiver = Server::statuses(&[200]).await;
    let mut signing = owned("alice", "f");
    signing.secrets = vec!["alice-hooks".parse().unwrap()];
    signing.annotations.insert(annotations::CALLBACK_SECRET.to_owned(), "hooks".to_owned());
    house.put(signing, function.endpoint()).await;
    let url = format!("http://{}/", receiver.address);
    let parts_of = |asked: &Asked| {
        let signature = asked.header("x-updraft-signature");
        signature.split(',').skip(1).map(str::to_owned).collect::<Vec<_>>()
    };
    let by = |asked: &Asked, key: &str| {
        expected_signature(asked, key).split(',').nth(1).unwrap().to_owned()
    };

    // The owner's key is not what its receivers know.
    let call = house.submit(told_at("alice-f", &url), "").await.unwrap();
    let failed = callback(&house, &call, CallbackState::Failed).await;
    assert!(failed.reason.unwrap().contains("secret `alice-hooks`"));
    assert_eq!((failed.attempts, receiver.asked().len()), (4, 0));

    house.engine.put_secret_text("alice-hooks", "first\n");
    house.submit(told_at("alice-f", &url), "").await.unwrap();
    let told = receiver.is_asked(1).await[0].clone();
    assert_eq!(parts_of(&told), [by(&told, "first")]);

    house.engine.put_secret_text("alice-hooks", "second\nfirst");
    house.submit(told_at("alice-f", &url), "").await.unwrap();
    let told = receiver.is_asked(2).await[1].clone();
    assert_eq!(parts_of(&told), [by(&told, "second"), by(&told, "first")]);
}

#[tokio::test]
async fn a_failed_call_is_told_too_with_how_often_it_was_tried() {
    let house = House::new().await;
    let function = Server::statuses(&[500]).await;
    let receiver = Server::statuses(&[200]).await;
    house.put(spec("f", &[]), function.endpoint()).await;
    let url = format!("http://{}/", receiver.address);
    let call = house.submit(told_at("f", &url), "").await.unwrap();
    callback(&house, &call, CallbackState::Delivered).await;
    let told = &receiver.asked()[0];
    assert_eq!(told.header("x-function-status"), "500");
    assert_eq!((told.header("x-retry"), told.header("x-retry-max")), ("2", "2"));
    assert_eq!(&told.body[..], b"answer 2");
    // The same letter, made again, is told again.
    assert!(house.queue.redrive(&call).await.unwrap());
    receiver.is_asked(2).await;
}

#[tokio::test]
async fn a_call_that_was_never_made_is_told_as_503_with_the_reason() {
    let house = House::new().await;
    let function = Server::statuses(&[500]).await;
    let receiver = Server::statuses(&[200]).await;
    let slow = spec("f", &[(annotations::RETRY_MIN_WAIT, "200ms")]);
    house.put(slow, function.endpoint()).await;
    let url = format!("http://{}/", receiver.address);
    let call = house.submit(told_at("f", &url), "").await.unwrap();
    function.is_asked(1).await;
    house.take_away(&crate::house::id("f")).await;
    house.ends(&call, CallState::Dead).await;
    let told = &receiver.is_asked(1).await[0];
    assert_eq!(told.header("x-function-status"), "503");
    assert!(String::from_utf8_lossy(&told.body).contains("was removed"));
}

#[tokio::test]
async fn a_receiver_that_fails_is_told_again_and_given_up_in_the_end() {
    let house = House::new().await;
    let function = Server::statuses(&[200]).await;
    house.put(spec("f", &[]), function.endpoint()).await;
    let recovers = Server::statuses(&[500, 429, 200]).await;
    let url = format!("http://{}/", recovers.address);
    let call = house.submit(told_at("f", &url), "").await.unwrap();
    let delivered = callback(&house, &call, CallbackState::Delivered).await;
    assert_eq!(delivered.attempts, 3);

    let broken = Server::statuses(&[500]).await;
    let url = format!("http://{}/", broken.address);
    let call = house.submit(told_at("f", &url), "").await.unwrap();
    let failed = callback(&house, &call, CallbackState::Failed).await;
    assert_eq!((failed.attempts, broken.asked().len()), (4, 4));
    assert_eq!(failed.reason.as_deref(), Some("the callback address answered 500"));
    assert_eq!(house.call(&call).await.state, CallState::Done);
}

#[tokio::test]
async fn redirects_and_refusals_are_not_followed_and_not_repeated() {
    let house = House::new().await;
    let function = Server::statuses(&[200]).await;
    house.put(spec("f", &[]), function.endpoint()).await;
    let elsewhere = Server::statuses(&[200]).await;
    let target = format!("http://{}/", elsewhere.address);
    let redirects = Server::start(move |_, _| {
        let answer = Response::builder().status(307).header("location", target.clone());
        let answer = answer.body(Full::default()).unwrap();
        async move { answer }
    })
    .await;
    let url = format!("http://{}/", redirects.address);
    let call = house.submit(told_at("f", &url), "").await.unwrap();
    callback(&house, &call, CallbackState::Failed).await;
    assert_eq!((redirects.asked().len(), elsewhere.asked().len()), (1, 0));
}

#[tokio::test]
async fn addresses_inside_are_refused_by_their_form_or_once_they_are_looked_up() {
    let options = quick();
    let callback_options = CallbackOptions { allow: Vec::new(), ..options.callback.clone() };
    let house = House::with(QueueOptions { callback: callback_options, ..options }).await;
    let function = Server::statuses(&[200]).await;
    let secret = Server::statuses(&[200]).await;
    house.put(spec("f", &[]), function.endpoint()).await;
    let port = secret.address.port();
    for url in [
        format!("http://127.0.0.1:{port}/"),
        format!("http://[::1]:{port}/"),
        format!("http://[::ffff:127.0.0.1]:{port}/"),
        "http://169.254.169.254/latest/meta-data/".to_owned(),
        "http://10.0.0.1/".to_owned(),
        "http://gateway.cloud.test:8080/function/f".to_owned(),
        "http://user:password@example.org/".to_owned(),
        "ftp://example.org/".to_owned(),
    ] {
        let refusal = house.submit(told_at("f", &url), "").await.unwrap_err();
        assert_eq!(refusal.status(), 400, "{url}");
        assert!(refusal.to_string().contains("callback"), "{refusal}");
    }
    // A name has to be looked up; `localhost` stands for something inside.
    let call = house.submit(told_at("f", &format!("http://localhost:{port}/")), "").await.unwrap();
    let failed = callback(&house, &call, CallbackState::Failed).await;
    let reason = failed.reason.unwrap();
    assert!(reason.contains("`localhost`") && reason.contains("loopback"), "{reason}");
    assert_eq!((failed.attempts, secret.asked().len()), (1, 0));
}

#[tokio::test]
async fn a_pending_callback_survives_a_restart() {
    let mut options = quick();
    options.callback.retry.min_wait = Duration::from_millis(600);
    options.callback.retry.max_wait = Duration::from_millis(600);
    let mut house = House::with(options).await;
    let function = Server::statuses(&[200]).await;
    let receiver = Server::statuses(&[503, 200]).await;
    house.put(spec("f", &[]), function.endpoint()).await;
    let url = format!("http://{}/", receiver.address);
    let call = house.submit(told_at("f", &url), "").await.unwrap();
    receiver.is_asked(1).await;
    house.restart().await;
    callback(&house, &call, CallbackState::Delivered).await;
    assert_eq!(receiver.asked().len(), 2);
    assert_eq!(function.asked().len(), 1, "the call itself is not made again");
}

#[tokio::test]
async fn https_is_told_when_its_certificate_is_believed_and_not_otherwise() {
    let made = rcgen::generate_simple_self_signed(vec!["localhost".to_owned()]).unwrap();
    let key = PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(made.signing_key.serialize_der()));
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let config = rustls::ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(vec![made.cert.der().clone()], key)
        .unwrap();
    let acceptor = TlsAcceptor::from(Arc::new(config));
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            let Ok(stream) = acceptor.accept(stream).await else { continue };
            let service = service_fn(async |_| {
                Ok::<_, std::convert::Infallible>(Response::new(Full::<bytes::Bytes>::default()))
            });
            let server = hyper::server::conn::http1::Builder::new();
            tokio::spawn(server.serve_connection(TokioIo::new(stream), service));
        }
    });
    let function = Server::statuses(&[200]).await;
    let url = format!("https://localhost:{port}/hook");
    let folder = tempfile::tempdir().unwrap();
    let roots = folder.path().join("roots.pem");
    std::fs::write(&roots, made.cert.pem()).unwrap();
    for (roots, state) in [(Some(roots), CallbackState::Delivered), (None, CallbackState::Failed)] {
        let mut options = quick();
        options.callback.roots = roots;
        options.callback.allow.push("localhost".parse().unwrap());
        let house = House::with(options).await;
        house.put(spec("f", &[]), function.endpoint()).await;
        let call = house.submit(told_at("f", &url), "").await.unwrap();
        let callback = callback(&house, &call, state).await;
        if state == CallbackState::Failed {
            let reason = callback.reason.unwrap();
            assert!(reason.contains("certificate"), "{reason}");
        }
    }
}
