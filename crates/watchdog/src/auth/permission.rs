//! Whether a list of patterns names a function.
//!
//! A pattern always stands for the whole of `namespace:name`: `dev:env` is not `dev:env-admin`.

/// Whether one of the patterns names the function; an empty list names none.
pub(super) fn permits(patterns: &[String], function: &str) -> bool {
    patterns.iter().any(|pattern| matches(pattern.as_bytes(), function.as_bytes()))
}

/// `*` stands for any run of bytes, none included; everything else for itself.
fn matches(pattern: &[u8], text: &[u8]) -> bool {
    let (mut at, mut from) = (0, 0);
    // Where to go on when what follows the last star does not fit: one byte later.
    let mut retry = None;
    while at < text.len() {
        match pattern.get(from) {
            Some(b'*') => {
                retry = Some((from + 1, at));
                from += 1;
            }
            Some(&byte) if byte == text[at] => {
                at += 1;
                from += 1;
            }
            _ => {
                let Some((after_star, begun)) = retry else { return false };
                retry = Some((after_star, begun + 1));
                at = begun + 1;
                from = after_star;
            }
        }
    }
    pattern[from..].iter().all(|&byte| byte == b'*')
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn check(patterns: &[&str], function: &str, expected: bool) {
        let owned: Vec<_> = patterns.iter().map(|&pattern| pattern.to_owned()).collect();
        assert_eq!(permits(&owned, function), expected, "{patterns:?} on {function}");
    }

    #[test]
    fn no_permission_permits_nothing() {
        check(&[], "dev:env", false);
        check(&[""], "dev:env", false);
    }

    #[test]
    fn a_pattern_names_one_function_one_namespace_or_one_name_everywhere() {
        check(&["dev:env"], "dev:env", true);
        check(&["dev:*"], "dev:env", true);
        check(&["*:env"], "dev:env", true);
        check(&["*"], "dev:env", true);
        check(&["*:*"], "dev:env", true);
        check(&["dev:e*v"], "dev:env", true);
        check(&["prod:env"], "dev:env", false);
        check(&["dev:figlet"], "dev:env", false);
        check(&["prod:*"], "dev:env", false);
        check(&["*:figlet"], "dev:env", false);
    }

    #[test]
    fn one_of_several_is_enough() {
        check(&["prod:*", "dev:env"], "dev:env", true);
        check(&["prod:*", "dev:figlet"], "dev:env", false);
    }

    #[test]
    fn a_pattern_that_is_only_a_part_does_not_match() {
        check(&["dev:env"], "dev:env-admin", false);
        check(&["dev:env"], "xdev:env", false);
        check(&["dev:*"], "xdev:env", false);
        check(&["*:env"], "dev:env-admin", false);
        check(&["dev:env."], "dev:env1", false);
    }

    #[test]
    fn many_stars_cost_little() {
        let pattern = "*a".repeat(200) + "b";
        check(&[&pattern], &"a".repeat(2000), false);
    }

    proptest! {
        #[test]
        fn the_result_is_that_of_the_obvious_recursion(
            pattern in "[ab*]{0,8}", text in "[ab]{0,8}",
        ) {
            fn slow(pattern: &[u8], text: &[u8]) -> bool {
                match (pattern.split_first(), text.split_first()) {
                    (None, _) => text.is_empty(),
                    (Some((b'*', rest)), None) => slow(rest, text),
                    (Some((b'*', rest)), Some((_, tail))) => {
                        slow(rest, text) || slow(pattern, tail)
                    }
                    (Some((byte, rest)), Some((first, tail))) => {
                        byte == first && slow(rest, tail)
                    }
                    (Some(_), None) => false,
                }
            }
            let (pattern, text) = (pattern.as_bytes(), text.as_bytes());
            prop_assert_eq!(matches(pattern, text), slow(pattern, text));
        }
    }
}
