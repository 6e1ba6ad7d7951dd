use super::*;
use crate::unseal::{Hints, OpeningKey, unseal_with_keys};
use crate::{Draft, PrivateKey, Scope, SecretBytes, Template, seal};
use jiff::{SignedDuration, Timestamp};

fn key() -> PrivateKey {
    PrivateKey::from_pem(include_bytes!("../../tests/vectors/test.pem")).unwrap()
}

fn sealed(name: &str, scope: Scope, items: &[(&str, &str)]) -> SealedSecret {
    let certificate = key().certify("", Timestamp::now(), SignedDuration::from_hours(1)).unwrap();
    let draft = Draft {
        name: name.to_owned(),
        namespace: Some("openfaas-fn".to_owned()),
        scope,
        template: Template { kind: Some("Opaque".to_owned()), ..Template::default() },
        items: items
            .iter()
            .map(|(key, value)| ((*key).to_owned(), SecretBytes::new(value.as_bytes().to_vec())))
            .collect(),
    };
    seal(&certificate, &draft, Timestamp::now()).unwrap()
}

fn opened(secret: &SealedSecret) -> BTreeMap<String, String> {
    let key = key();
    let keys = [OpeningKey { key: &key, in_use: true }];
    let opened = unseal_with_keys(&keys, secret, &Hints::default(), Limits::usual()).unwrap();
    let text = |value: &SecretBytes| String::from_utf8(value.to_vec()).unwrap();
    opened.items.iter().map(|(key, value)| (key.clone(), text(value))).collect()
}

fn file(text: &str) -> SealedFile {
    SealedFile::parse(text.as_bytes(), Limits::usual()).unwrap()
}

#[test]
fn what_is_written_is_read_back_and_opens() {
    for format in [Format::Yaml, Format::Json] {
        for scope in Scope::ALL {
            let secret = sealed("alice-a", scope, &[("b", "2"), ("a.b-c", "1"), ("123", "3")]);
            let text = secret.to_text(format);
            let read = file(&text).sealed().unwrap().remove(0);
            assert_eq!(read.scope, scope);
            assert_eq!(read.items, secret.items);
            assert_eq!(opened(&read)["a.b-c"], "1");
            assert_eq!(opened(&read)["123"], "3");
            assert!(!text.contains("czNj"));
        }
    }
}

#[test]
fn a_merge_leaves_every_other_byte_alone() {
    let first = sealed("alice-a", Scope::Strict, &[("a", "1"), ("c", "3")]);
    let value = |key: &str| match &first.items[key] {
        Item::Sealed(value) => value.clone(),
        Item::Faulty(_) => unreachable!(),
    };
    let text = format!(
        "# our secrets\n---\napiVersion: v1\nkind: ConfigMap\nmetadata: {{name: x}}\n---\n\
         # keys of the shop\napiVersion: bitnami.com/v1alpha1\nkind: SealedSecret\nmetadata:\n  \
         name: alice-a # the name\n  namespace: openfaas-fn\n  annotations:\n    argo/wave: \"1\"\n\
         spec:\n  encryptedData:\n    a: {} # first\n    c: \"{}\"\n  template:\n    type: Opaque\n",
        value("a"),
        value("c")
    );
    let mut edited = file(&text);
    let old = edited.find("alice-a", Some("openfaas-fn")).unwrap().unwrap();
    assert_eq!(old.place.document, 2);
    let new = sealed("alice-a", Scope::Strict, &[("b", "two"), ("c", "three"), ("d", "four")]);
    edited.merge(&old, &new).unwrap();
    let lines: Vec<&str> = edited.as_str().lines().collect();
    assert_eq!(lines.len(), text.lines().count() + 2, "{}", edited.as_str());
    for line in text.lines().filter(|line| !line.contains("c: ")) {
        assert!(lines.contains(&line), "{line}\n{}", edited.as_str());
    }
    let read = edited.sealed().unwrap().remove(0);
    assert_eq!(read.items["a"], first.items["a"]);
    assert_eq!(read.annotations["argo/wave"], "1");
    assert_eq!(opened(&read).into_values().collect::<Vec<_>>(), ["1", "two", "three", "four"]);

    edited.remove_item(&read, "a").unwrap();
    assert!(!edited.as_str().contains("# first"), "{}", edited.as_str());
    assert_eq!(opened(&edited.sealed().unwrap()[0]).len(), 3);
    assert!(edited.remove_item(&read, "nope").is_err());
}

#[test]
fn flow_style_json_and_lists_are_merged_too() {
    let new = sealed("alice-a", Scope::Strict, &[("b", "two")]);
    let known = sealed("alice-a", Scope::Strict, &[("a", "1")]);
    let json = known.to_text(Format::Json);
    let flow = format!("---\n{}", json.replace('\n', " ").replace("\"apiVersion\"", "apiVersion"));
    let list = format!(
        "{{\"apiVersion\":\"v1\",\"kind\":\"List\",\"items\":[{{\"kind\":\"X\"}},{json}]}}"
    );
    for text in [json.as_str(), &flow, &list] {
        let mut edited = file(text);
        let format = edited.format();
        let old = edited.find("alice-a", None).unwrap().unwrap();
        edited.merge(&old, &new).unwrap();
        assert_eq!(file(edited.as_str()).format(), format, "{text}");
        let read = edited.sealed().unwrap().remove(0);
        assert_eq!(opened(&read).into_values().collect::<Vec<_>>(), ["1", "two"]);
    }
}

#[test]
fn an_empty_map_and_labels_that_were_not_there_are_filled() {
    let text = "apiVersion: bitnami.com/v1alpha1\nkind: SealedSecret\nmetadata: {name: alice-a, namespace: openfaas-fn}\nspec:\n  encryptedData: {}\n";
    let mut new = sealed("alice-a", Scope::Strict, &[("a", "1")]);
    new.template.labels.insert("app".to_owned(), "shop".to_owned());
    let mut edited = file(text);
    let old = edited.sealed().unwrap().remove(0);
    edited.merge(&old, &new).unwrap();
    let read = edited.sealed().unwrap().remove(0);
    assert_eq!((opened(&read)["a"].as_str(), read.template.labels["app"].as_str()), ("1", "shop"));
}

#[test]
fn documents_are_added_at_the_end() {
    let mut edited = SealedFile::new(Format::Yaml);
    edited.append(&sealed("alice-a", Scope::Strict, &[("a", "1")])).unwrap();
    edited.append(&sealed("alice-b", Scope::ClusterWide, &[("a", "2")])).unwrap();
    let names: Vec<_> = edited.sealed().unwrap().into_iter().map(|secret| secret.name).collect();
    assert_eq!(names, ["alice-a", "alice-b"]);
    assert!(edited.as_str().starts_with("---\napiVersion: bitnami.com/v1alpha1\n"));
}
