use super::*;
use proptest::prelude::*;

fn filled(template: &str) -> Result<String, String> {
    let mut items = BTreeMap::new();
    for (key, value) in [
        ("password", "s3cr3t"),
        ("user", "al\"ice"),
        ("lines", "a\nb"),
        ("json", "{\"n\":5,\"l\":[\"x\",\"<\"]}"),
        ("tls.key", "K"),
        ("empty", ""),
    ] {
        items.insert(key.to_owned(), SecretBytes::new(value.into()));
    }
    items.insert("binary".to_owned(), SecretBytes::new(vec![0xff, 0x00]));
    let texts = BTreeMap::from([("out".to_owned(), template.to_owned())]);
    match fill(&texts, &mut items).pop() {
        None => Ok(String::from_utf8(items["out"].to_vec()).unwrap()),
        Some(failure) => Err(failure.why.to_string()),
    }
}

#[test]
fn templates_mean_what_they_mean_in_go() {
    for (template, expected) in [
        ("plain", "plain"),
        ("{{ .password }}", "s3cr3t"),
        ("a {{- .password -}} b", "as3cr3tb"),
        ("{{/* a comment */}}x", "x"),
        ("{{ index . \"tls.key\" }}", "K"),
        ("{{ $.password }}", "s3cr3t"),
        ("{{ if .password }}y{{ else }}n{{ end }}", "y"),
        ("{{ if .empty }}a{{ else if .missing }}b{{ else }}c{{ end }}", "c"),
        ("{{ with .password }}[{{ . }}]{{ end }}", "[s3cr3t]"),
        ("{{ with .missing }}a{{ else }}b{{ end }}", "b"),
        ("{{ range splitList \"\\n\" .lines }}<{{ . }}>{{ end }}", "<a><b>"),
        ("{{ range $i, $v := list \"x\" \"y\" }}{{ $i }}{{ $v }}{{ end }}", "0x1y"),
        ("{{ range $k, $v := dict \"b\" 2 \"a\" 1 }}{{ $k }}={{ $v }};{{ end }}", "a=1;b=2;"),
        ("{{ $x := .password }}{{ $x | upper }}", "S3CR3T"),
        ("{{ $x := 1 }}{{ if true }}{{ $x = 2 }}{{ end }}{{ $x }}", "2"),
        ("{{ printf \"%s:%d:%q%%\" .password 5 .user }}", "s3cr3t:5:\"al\\\"ice\"%"),
        ("{{ .password | b64enc }}", "czNjcjN0"),
        ("{{ .binary | b64enc }}", "/wA="),
        ("{{ \"czNjcjN0\" | b64dec }}", "s3cr3t"),
        ("{{ .user | quote }}{{ squote .password }}", "\"al\\\"ice\"'s3cr3t'"),
        ("{{ (fromJson .json).n }}{{ (fromJson .json).l | toJson }}", "5[\"x\",\"\\u003c\"]"),
        ("{{ dict \"a\" .password | toJson }}", "{\"a\":\"s3cr3t\"}"),
        ("{{ \"  x \" | trim }}{{ lower \"ABC\" }}", "xabc"),
        ("{{ .missing | default \"d\" }}{{ .password | default \"d\" }}", "ds3cr3t"),
        ("{{ .lines | indent 2 }}", "  a\n  b"),
        ("x:{{ .lines | nindent 2 }}", "x:\n  a\n  b"),
        ("{{ replace \"3\" \"e\" .password }}", "secret"),
        ("{{ join \"-\" (list \"a\" \"b\") }}", "a-b"),
        ("{{ (split \"\\n\" .lines)._1 }}", "b"),
        (
            "{{ sha256sum \"x\" }}",
            "2d711642b726b04401627ca9fbac32f5c8530fb1903cc4db02258717921a4881",
        ),
        (
            "{{ if and .password (not .empty) }}1{{ end }}{{ if or .empty .password }}2{{ end }}",
            "12",
        ),
        ("{{ if eq .password \"a\" \"s3cr3t\" }}=/{{ end }}{{ if ne 1 2 }}!={{ end }}", "=/!="),
        ("{{ len .password }}{{ print 1 2 \"x\" }}", "61 2x"),
        ("{{ `raw {{` }}", "raw {{"),
    ] {
        assert_eq!(filled(template).as_deref(), Ok(expected), "{template}");
    }
}

#[test]
fn what_is_not_supported_or_wrong_is_named() {
    for (template, words) in [
        ("{{ env \"HOME\" }}", "`env` is not supported"),
        ("{{ expandenv \"x\" }}", "`expandenv` is not supported"),
        ("{{ getHostByName \"x\" }}", "`getHostByName` is not supported"),
        ("{{ .password | genCA }}", "`genCA` is not supported"),
        ("{{ define \"x\" }}{{ end }}", "`define` is not supported"),
        ("{{ range list 1 }}{{ break }}{{ end }}", "`break` is not supported"),
        ("a\nb {{ .missing }}", "line 2: a value is not there"),
        ("{{ .password.x }}", "`.x` is asked of a value that has no fields"),
        ("{{ if .password }}", "a block has no `end`"),
        ("{{ end }}", "closes nothing"),
        ("{{ .password ", "is not closed"),
        ("{{ printf \"%f\" 1 }}", "`%f` is not supported"),
        ("{{ b64dec \"!\" }}", "not valid base64"),
        ("{{ list 1 }}", "cannot be written out"),
        ("{{ $nope }}", "`$nope` is unknown"),
        ("{{ upper }}", "arguments"),
        ("{{ }}", "a value is missing"),
        ("{{ (.password }}", "not closed"),
        ("{{ index (list 1) 5 }}", "no entry 5"),
        ("{{ upper .binary }}", "no UTF-8"),
    ] {
        let error = filled(template).unwrap_err();
        assert!(error.contains(words), "{template}: {error}");
        assert!(!error.contains("s3cr3t"), "{error}");
    }
}

#[test]
fn password_hashes_are_those_of_htpasswd() {
    let line = filled("{{ htpasswd .password \"pw\" }}").unwrap();
    let hash = line.strip_prefix("s3cr3t:").unwrap();
    assert!(hash.starts_with("$2a$10$") && bcrypt::verify("pw", hash).unwrap(), "{line}");
    let many = "{{ bcrypt \"x\" }}".repeat(9);
    assert!(filled(&many).unwrap_err().contains("too many password hashes"));
}

#[test]
fn what_a_template_may_cost_is_bounded() {
    let doubling = "{{ $x := \"aaaaaaaaaaaaaaaa\" }}".to_owned()
        + &"{{ $x = printf \"%s%s%s%s\" $x $x $x $x }}".repeat(20);
    assert!(filled(&doubling).unwrap_err().contains("too large"));
    let list = format!("{{{{ $l := list {} }}}}", "1 ".repeat(100));
    let nested = "{{ range $l }}".repeat(4) + "x" + &"{{ end }}".repeat(4);
    assert!(filled(&(list + &nested)).unwrap_err().contains("too much"));
    assert!(filled(&"{{ if true }}".repeat(100)).unwrap_err().contains("nested"));
    assert!(filled(&format!("{{{{ {} }}}}", "(".repeat(100))).unwrap_err().contains("nested"));
}

#[test]
fn texts_see_the_items_and_stand_over_them() {
    let mut items = BTreeMap::from([("a".to_owned(), SecretBytes::new(b"1".to_vec()))]);
    let texts = BTreeMap::from([
        ("a".to_owned(), "[{{ .a }}]".to_owned()),
        ("b".to_owned(), "({{ .a }})".to_owned()),
    ]);
    assert!(fill(&texts, &mut items).is_empty());
    assert_eq!((items["a"].expose(), items["b"].expose()), (&b"[1]"[..], &b"(1)"[..]));
}

proptest! {
    #[test]
    fn no_template_makes_the_evaluator_panic(template in "(\\{\\{|\\}\\}| |-|[.$a-c|()=:,\"`0-9\\\\]|if|range|end|else|with|index|list|indent|printf|\\PC|\n){0,40}") {
        drop(filled(&template));
    }
}
