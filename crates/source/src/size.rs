//! Numbers of bytes as people say them.

const KIB: u64 = 1 << 10;
const MIB: u64 = 1 << 20;
const GIB: u64 = 1 << 30;

/// For instance `1 GiB`, `128.1 MiB` or `17 bytes`; rounded up to a tenth, so that what is over a
/// limit never looks equal to it.
pub(crate) fn readable(bytes: u64) -> String {
    let (unit, name) = match bytes {
        0..KIB => return format!("{bytes} bytes"),
        KIB..MIB => (KIB, "KiB"),
        MIB..GIB => (MIB, "MiB"),
        GIB.. => (GIB, "GiB"),
    };
    let (mut whole, rest) = (bytes / unit, bytes % unit);
    let mut tenth = (rest * 10).div_ceil(unit);
    if tenth == 10 {
        (whole, tenth) = (whole + 1, 0);
    }
    if tenth == 0 { format!("{whole} {name}") } else { format!("{whole}.{tenth} {name}") }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_said_as_people_say_them_and_never_smaller_than_they_are() {
        for (bytes, expected) in [
            (0, "0 bytes"),
            (1023, "1023 bytes"),
            (1024, "1 KiB"),
            (1536, "1.5 KiB"),
            (128 * MIB, "128 MiB"),
            (128 * MIB + 1, "128.1 MiB"),
            (129 * MIB - 1, "129 MiB"),
            (GIB, "1 GiB"),
        ] {
            assert_eq!(readable(bytes), expected);
        }
    }
}
