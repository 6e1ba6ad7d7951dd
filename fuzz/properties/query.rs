/// What must hold of a query for logs, whatever a client sends.
pub fn check(data: &[u8]) {
    let Ok(text) = std::str::from_utf8(data) else { return };
    let pairs = text.split('&').filter_map(|pair| pair.split_once('='));
    // Of a repeated key the last value counts.
    let query: std::collections::HashMap<String, String> =
        pairs.map(|(key, value)| (key.to_owned(), value.to_owned())).collect();
    let id = updraft_model::FunctionId::in_default("f".parse().expect("a name"));
    match LogQuery::read(id, &query) {
        Ok(read) => {
            assert!(read.tail != Some(0), "no lines at all are asked for by nobody");
            let instance = query.get("instance").filter(|text| !text.is_empty());
            assert_eq!(read.instance.as_ref().map(updraft_engine::ReplicaId::as_str), instance.map(String::as_str));
            if let Some(since) = read.since {
                let again: jiff::Timestamp = since.to_string().parse().expect("a time");
                assert_eq!(again, since, "a time is read back as itself");
            }
        }
        Err(reason) => {
            let (key, _) = reason.split_once(": ").expect("the key comes first");
            assert!(query.contains_key(key), "`{key}` was not sent");
        }
    }
}
