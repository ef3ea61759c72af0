//! GPUs are devices: a fraction of one lies on one device, and what is left of several does not add up.
//!
//! A fraction counts as the k-th part of a device of which k like it fit on one. Sums of such parts are what devices can hold:
//! 0.6 counts as a whole one, 0.5 and 0.4 as a half, 0.3 as a third.

/// Parts of one device: a multiple of every number up to 16.
const DEVICE: u64 = 720_720;
/// Of a device in thousandths.
const WHOLE: u64 = 1_000;

/// What a number of GPUs in thousandths takes of devices, in parts of one. Beyond whole devices a fraction of one more.
pub fn parts_needed(thousandths: u64) -> u64 {
    let (whole, fraction) = (thousandths / WHOLE, thousandths % WHOLE);
    whole.saturating_mul(DEVICE).saturating_add(if fraction == 0 { 0 } else { part(fraction) })
}

/// What so many devices have.
pub fn parts_offered(devices: u32) -> u64 {
    u64::from(devices) * DEVICE
}

/// The same in thousandths of GPUs, for people; never fewer.
pub fn thousandths(parts: u64) -> u64 {
    (parts / DEVICE).saturating_mul(WHOLE).saturating_add((parts % DEVICE * WHOLE).div_ceil(DEVICE))
}

/// The part of a device that a fraction takes.
fn part(fraction: u64) -> u64 {
    // One part is always possible.
    let most = WHOLE / fraction;
    let copies = (1..=most).rev().find(|copies| DEVICE.is_multiple_of(*copies)).unwrap_or(1);
    DEVICE / copies
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn as_many_fractions_fit_as_devices_hold() {
        for (fraction, devices, fit) in [
            (600, 2, 2),
            (500, 2, 4),
            (400, 1, 2),
            (300, 1, 3),
            (250, 1, 4),
            (200, 1, 5),
            (100, 1, 10),
            (1_000, 2, 2),
            (1_500, 2, 1),
            (50, 1, 20),
        ] {
            assert_eq!(parts_offered(devices) / parts_needed(fraction), fit, "{fraction} thousandths on {devices} devices");
        }
        for (fraction, shown) in [(600, 1_000), (500, 500), (300, 334), (2_000, 2_000), (0, 0)] {
            assert_eq!(thousandths(parts_needed(fraction)), shown);
        }
    }

    /// Of any two fractions, whatever adds up to two devices can be laid onto two.
    #[test]
    fn what_adds_up_can_be_laid_onto_devices() {
        let mut looked = 0;
        for a in (60..=1_000).step_by(20) {
            for b in (60..a).step_by(20) {
                let (of_a, of_b) = (parts_needed(a), parts_needed(b));
                for n in 0..=parts_offered(2) / of_a {
                    // As many of the others as are said to fit beside these.
                    let others = (parts_offered(2) - n * of_a) / of_b;
                    let beside = |n: u64| (n * a <= 1_000).then(|| (1_000 - n * a) / b);
                    let fits = (0..=n).any(|first| matches!((beside(first), beside(n - first)), (Some(x), Some(y)) if x + y >= others));
                    assert!(fits, "{n} of {a} and {others} of {b}");
                    looked += 1;
                }
            }
        }
        assert!(looked > 2_000, "{looked}");
    }
}
