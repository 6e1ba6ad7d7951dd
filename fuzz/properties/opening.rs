/// The key of the published samples, which is never used for real, and what is sealed for it.
const KEY: &str = include_str!("../../crates/seal/tests/vectors/test.pem");
const SEALED: &str = include_str!("../../crates/seal/tests/vectors/strict.yml");
const PLAIN: &[u8] = b"s3cr3t-v4lue";

fn sample() -> &'static (PrivateKey, SealedSecret, Vec<u8>) {
    static SAMPLE: OnceLock<(PrivateKey, SealedSecret, Vec<u8>)> = OnceLock::new();
    SAMPLE.get_or_init(|| {
        let key = PrivateKey::from_pem(KEY.as_bytes()).expect("the key is in order");
        let mut read = parse_documents(SEALED.as_bytes(), Limits::usual()).expect("it can be read");
        let Some(Document::Sealed(secret)) = read.pop() else { panic!("it is no sealed secret") };
        let Some(Item::Sealed(text)) = secret.items.get("api") else { panic!("it has the item") };
        let value = STANDARD.decode(text).expect("it is base64");
        (key, *secret, value)
    })
}

/// Opens a text as the one item of the sample; nothing where it does not open.
fn opened(text: String) -> Option<Vec<u8>> {
    let (key, secret, _) = sample();
    let mut secret = secret.clone();
    secret.items = [("api".to_owned(), Item::Sealed(text))].into();
    let keys = [OpeningKey { key, in_use: true }];
    match unseal_with_keys(&keys, &secret, &Hints::default(), Limits::usual()) {
        Ok(opened) => Some(opened.items["api"].expose().to_vec()),
        Err(error) => {
            assert_eq!(error.failures.len(), 1, "one item, one reason");
            let told = error.to_string() + &error.opaque();
            assert!(told.contains("(api)") && !told.contains("s3cr3t"), "{told}");
            None
        }
    }
}

/// What must hold of a sealed value, whatever a stranger commits: it opens as it was sealed, or
/// not at all.
pub(crate) fn check(data: &[u8]) {
    let Some((kind, rest)) = data.split_first() else { return };
    let (_, _, good) = sample();
    match kind % 4 {
        // A text of any kind.
        0 => assert_eq!(opened(String::from_utf8_lossy(rest).into_owned()), None),
        // Bytes of any kind.
        1 => assert_eq!(opened(STANDARD.encode(rest)), None),
        // Bytes changed, each by what follows its place.
        2 => {
            let mut value = good.clone();
            for change in rest.chunks_exact(3) {
                let at = usize::from(u16::from_be_bytes([change[0], change[1]])) % value.len();
                value[at] ^= change[2];
            }
            let expected = (value == *good).then(|| PLAIN.to_vec());
            assert_eq!(opened(STANDARD.encode(value)), expected);
        }
        // Cut off, or with something behind it.
        _ => {
            let mut value = good.clone();
            if let [high, low] = *rest {
                value.truncate(usize::from(u16::from_be_bytes([high, low])));
            } else {
                value.extend(rest);
            }
            let expected = (value == *good).then(|| PLAIN.to_vec());
            assert_eq!(opened(STANDARD.encode(value)), expected);
        }
    }
}
