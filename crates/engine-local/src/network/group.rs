//! The group of a replica's device: one number that tells the firewall the segment and the tenant.
//!
//! The lower twelve bits are the tenant's number, what is above them is the segment's. So the
//! kernel can count what each tenant sends without being told of tenants: the table changes with
//! the policies, not with who comes and goes.

use crate::tenants::{IdRange, USERS};

/// How many bits the tenant's number has: as many as there are ranges of users to give away.
const TENANT_BITS: u32 = 12;

/// The bits of a group that are the tenant's.
pub(crate) const TENANT_MASK: u32 = (1 << TENANT_BITS) - 1;

/// The bits of a group that are the segment's.
pub(crate) const SEGMENT_MASK: u32 = !TENANT_MASK;

/// Segments have numbers below this one: some programs take a group for a signed number.
const SEGMENTS: u32 = 1 << (31 - TENANT_BITS);

/// The group of a tenant's devices in a segment.
pub(crate) fn of(segment: u32, tenant: u32) -> u32 {
    (segment << TENANT_BITS) | (tenant & TENANT_MASK)
}

/// What the group of a device in this segment is, but for the tenant's bits.
pub(crate) fn segment_bits(segment: u32) -> u32 {
    segment << TENANT_BITS
}

/// The number of the tenant that has these users. Neighbouring ranges have different ones, and
/// none has 0, which is what devices begin with.
pub(crate) fn tenant_number(users: IdRange) -> u32 {
    users.first / USERS % TENANT_MASK + 1
}

/// A number that no segment of an earlier run is likely to have: a device in one of those reaches
/// nothing until this run has said what it may.
pub(crate) fn first_segment() -> u32 {
    let mut random = [0; 4];
    // Without randomness the time does: it only has to differ from the last run's.
    if getrandom::fill(&mut random).is_err() {
        random = std::process::id().to_le_bytes();
    }
    u32::from_le_bytes(random) % (SEGMENTS - 1) + 1
}

/// The number of the segment after another. 0 is that of devices that nobody took.
pub(crate) fn segment_after(segment: u32) -> u32 {
    segment % (SEGMENTS - 1) + 1
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn segment_and_tenant_are_told_apart() {
        let group = of(segment_after(SEGMENTS - 2), 4095);
        assert_eq!(group & TENANT_MASK, 4095);
        assert_eq!(group & SEGMENT_MASK, segment_bits(SEGMENTS - 1));
        assert!(i32::try_from(group).is_ok());
        assert_eq!(segment_after(SEGMENTS - 1), 1);
        assert!((1..SEGMENTS).contains(&first_segment()));
    }

    #[test]
    fn tenants_have_numbers_of_their_own_and_none_has_that_of_nobody() {
        let usual = crate::options::UserRange::USUAL;
        let ranges = usual.ranges();
        let numbers: std::collections::BTreeSet<u32> = (0..ranges)
            .map(|range| tenant_number(IdRange { first: usual.first + range * USERS }))
            .collect();
        assert_eq!(numbers.len(), ranges as usize);
        assert!(!numbers.contains(&0) && numbers.iter().all(|number| *number <= TENANT_MASK));
    }
}
