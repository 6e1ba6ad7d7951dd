/// What must hold of a file of sealed secrets, whatever a stranger commits.
pub(crate) fn check(data: &[u8]) {
    let limits = Limits { file_bytes: 64 << 10, documents: 20, items: 50, ..Limits::usual() };
    let documents = match parse_documents(data, limits) {
        Ok(documents) => documents,
        Err(error) => return assert!(!error.to_string().is_empty()),
    };
    assert!(documents.len() <= limits.documents, "documents are bounded");
    for document in documents {
        let Document::Sealed(secret) = document else { continue };
        assert!(
            !secret.name.is_empty() && !secret.name.contains('/'),
            "a name is one part of a label"
        );
        assert!(secret.items.len() <= limits.items, "items are bounded");
        let scope = secret.scope;
        // Without keys nothing opens, and every item is told of in one line.
        let opened = unseal_with_keys(&[], &secret, &Hints::default(), limits);
        if let Err(error) = opened {
            assert!(!error.failures.is_empty() && !error.opaque().is_empty());
        }
        // What is written reads back as the same secret.
        let text = secret.to_text(Format::Yaml);
        let read =
            parse_documents(text.as_bytes(), Limits::usual()).expect("what we write can be read");
        let [Document::Sealed(read)] = read.as_slice() else {
            panic!("one secret became {}", read.len())
        };
        assert_eq!(
            (&read.name, &read.namespace, read.scope),
            (&secret.name, &secret.namespace, scope)
        );
        assert_eq!(read.template.data, secret.template.data);
    }
    let file = SealedFile::parse(data, limits).expect("it was read before");
    for secret in file.sealed().expect("it was read before") {
        if secret.legacy.is_none() {
            let mut edited = file.clone();
            let items = [("zz-new".to_owned(), Item::Sealed("AQ==".to_owned()))].into();
            // Only the caps may refuse it.
            if edited.set_items(&secret, &items).is_ok() {
                let again = edited.sealed().expect("what we edit can be read");
                let known = again.iter().find(|again| {
                    again.place.document == secret.place.document
                        && again.place.item == secret.place.item
                });
                assert_eq!(
                    known.expect("it is still there").items.get("zz-new"),
                    items.get("zz-new")
                );
            }
        }
    }
}
