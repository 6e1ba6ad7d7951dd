//! A way to the server that is encrypted, where each side shows a certificate.

use rcgen::{BasicConstraints, CertificateParams, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair};
use updraft_queue_nats::{NatsCallStore, NatsFinding, NatsLogin, NatsTls, examine};

use crate::server::NatsServer;
use crate::{options, works, write};

#[tokio::test]
async fn an_encrypted_way_needs_certificates_that_each_side_believes() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path();
    let ca_key = KeyPair::generate().unwrap();
    let mut ca = CertificateParams::new(Vec::new()).unwrap();
    ca.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    let ca_file = write(path, "ca.pem", &ca.self_signed(&ca_key).unwrap().pem());
    let ca = Issuer::new(ca, ca_key);
    let certified = |name: &str, purpose: ExtendedKeyUsagePurpose| {
        let key = KeyPair::generate().unwrap();
        let mut certificate = CertificateParams::new(vec!["127.0.0.1".to_owned()]).unwrap();
        certificate.extended_key_usages = vec![purpose];
        let certificate = certificate.signed_by(&key, &ca).unwrap().pem();
        let key = write(path, &format!("{name}.key"), &key.serialize_pem());
        (write(path, &format!("{name}.pem"), &certificate), key)
    };
    let (theirs, their_key) = certified("server", ExtendedKeyUsagePurpose::ServerAuth);
    let own = certified("client", ExtendedKeyUsagePurpose::ClientAuth);
    let arguments = [
        "--tlsverify",
        "--tlscert",
        theirs.to_str().unwrap(),
        "--tlskey",
        their_key.to_str().unwrap(),
        "--tlscacert",
        ca_file.to_str().unwrap(),
    ];
    let server = NatsServer::start_with(&arguments);
    let with = |required: bool, roots: Option<_>, own: Option<_>| {
        let mut options = options(server.url(), path, NatsLogin::Nobody);
        options.tls = NatsTls { required, roots, own };
        options
    };

    let right = with(true, Some(ca_file.clone()), Some(own.clone()));
    works(&NatsCallStore::open(right).await.unwrap()).await;
    for (why, wrong) in [
        ("the server's certificate is not believed", with(true, None, Some(own))),
        ("no certificate is shown", with(true, Some(ca_file.clone()), None)),
    ] {
        let found = examine(&wrong).await;
        assert!(matches!(found, NatsFinding::Missing(..)), "{why}: {found:?}");
    }
    // A server without encryption is not spoken to where that is asked for.
    let plain = NatsServer::start();
    let mut asked = with(true, Some(ca_file), None);
    asked.servers = vec![plain.url()];
    let found = examine(&asked).await;
    assert!(matches!(found, NatsFinding::Missing(..)), "{found:?}");
}
