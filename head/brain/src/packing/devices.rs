//! GPUs are devices: a fraction of one lies on one device, and what is left of several does not add up.
//!
//! A fraction counts as the k-th part of a device of which k like it fit on one: 0.6 counts as a whole one, 0.5 and 0.4 as a
//! half, 0.3 as a third. Of parts of one size the devices hold what adds up; parts of several sizes are laid onto the devices
//! one by one ([`lays`]), the largest first, as in the first-fit-decreasing rule of bin packing: a half, two thirds and four
//! fifths add up to less than two devices, and do not fit on two.

use std::cmp::Reverse;
use std::collections::BTreeMap;

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

/// Whether demands fit onto so many parts of devices: how much each takes in parts, as [`parts_needed`] says, and how often.
/// True is certain; false means that the largest-first rule finds no way.
pub fn lays(offered: u64, demands: impl IntoIterator<Item = (u64, u32)>) -> bool {
    let mut fractions: BTreeMap<Reverse<u64>, u64> = BTreeMap::new();
    let mut whole = 0u64;
    for (parts, count) in demands {
        let count = u64::from(count);
        whole = whole.saturating_add((parts / DEVICE).saturating_mul(count));
        let fraction = parts % DEVICE;
        if fraction > 0 && count > 0 {
            *fractions.entry(Reverse(fraction)).or_default() += count;
        }
    }
    let Some(mut untouched) = (offered / DEVICE).checked_sub(whole) else { return false };
    // What is left on devices that hold fractions, in the order in which they were taken.
    let mut begun: Vec<u64> = Vec::new();
    for (Reverse(size), mut left) in fractions {
        for free in &mut begun {
            let here = (*free / size).min(left);
            *free -= here * size;
            left -= here;
        }
        let on_each = DEVICE / size;
        while left > 0 {
            if untouched == 0 {
                return false;
            }
            untouched -= 1;
            let here = on_each.min(left);
            begun.push(DEVICE - here * size);
            left -= here;
        }
    }
    true
}

/// Whether a demand takes a fraction of a device.
pub fn is_fractional(parts: u64) -> bool {
    !parts.is_multiple_of(DEVICE)
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

    /// By trying every device for each, the largest first.
    fn is_possible(free: &mut [u64], sizes: &[u64]) -> bool {
        let Some((size, rest)) = sizes.split_first() else { return true };
        for i in 0..free.len() {
            // Of devices that are alike one is tried.
            if free[i] >= *size && !free[..i].contains(&free[i]) {
                free[i] -= size;
                let fits = is_possible(free, rest);
                free[i] += size;
                if fits {
                    return true;
                }
            }
        }
        false
    }

    #[test]
    fn a_half_two_thirds_and_four_fifths_do_not_fit_on_two_devices() {
        let mix = [(parts_needed(500), 1), (parts_needed(333), 2), (parts_needed(200), 4)];
        assert!(mix.iter().map(|(parts, n)| parts * u64::from(*n)).sum::<u64>() <= parts_offered(2), "though they add up");
        assert!(!lays(parts_offered(2), mix));
        assert!(lays(parts_offered(3), mix));
        assert!(lays(parts_offered(2), [(parts_needed(1_000), 1), (parts_needed(500), 1), (parts_needed(333), 1)]));
        assert!(!lays(parts_offered(2), [(parts_needed(1_000), 1), (parts_needed(500), 1), (parts_needed(600), 1)]));
    }

    /// Mixes that are filled up until they add up to nearly all of the devices: where sums mislead.
    #[test]
    fn what_is_laid_onto_devices_fits_in_thousandths_too() {
        let mut seed = 7u64;
        let mut next = |n: u64| {
            seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            (seed >> 33) % n
        };
        let (mut laid, mut impossible, mut misled) = (0, 0, 0);
        for _ in 0..6_000 {
            let devices = 1 + next(4) as u32;
            let kinds: Vec<u64> =
                (0..2 + next(3)).map(|_| if next(3) == 0 { 50 * (1 + next(20)) } else { WHOLE / (2 + next(6)) }).collect();
            let (mut sizes, mut sum) = (Vec::new(), 0);
            while sizes.len() < 12 {
                let size = kinds[next(kinds.len() as u64) as usize];
                if sum + parts_needed(size) > parts_offered(devices) {
                    break;
                }
                sum += parts_needed(size);
                sizes.push(size);
            }
            sizes.sort_unstable_by(|a, b| b.cmp(a));
            let is_laid = lays(parts_offered(devices), sizes.iter().map(|size| (parts_needed(*size), 1)));
            let fits = is_possible(&mut vec![WHOLE; devices as usize], &sizes);
            assert!(fits || !is_laid, "{sizes:?} on {devices}");
            laid += u32::from(is_laid);
            impossible += u32::from(!fits);
            misled += u32::from(fits && !is_laid);
        }
        assert!(laid > 4_000 && impossible > 0 && misled < 120, "{laid} laid, {impossible} impossible, {misled} possible and not found");
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
