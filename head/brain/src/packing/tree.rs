//! The first of many bins that has room: a tree whose inner nodes hold, of each resource, the most that any bin below has.

use super::Amounts;

#[derive(Debug, Clone, Default)]
pub struct FreeTree {
    /// The root is at 1; the bins are the second half.
    nodes: Vec<Amounts>,
    bins: usize,
}

impl FreeTree {
    #[cfg(test)]
    pub fn len(&self) -> usize {
        self.bins
    }

    fn width(&self) -> usize {
        self.nodes.len() / 2
    }

    pub fn push(&mut self, free: Amounts) {
        if self.bins == self.width() {
            let bins = self.nodes[self.width()..].to_vec();
            let width = (self.bins * 2).max(8);
            self.nodes = vec![Amounts::default(); 2 * width];
            self.nodes[width..width + bins.len()].copy_from_slice(&bins);
            for at in (1..width).rev() {
                self.pull_up(at);
            }
        }
        self.bins += 1;
        self.set(self.bins - 1, free);
    }

    pub fn get(&self, bin: usize) -> Amounts {
        self.nodes[self.width() + bin]
    }

    pub fn set(&mut self, bin: usize, free: Amounts) {
        let mut at = self.width() + bin;
        self.nodes[at] = free;
        while at > 1 {
            at /= 2;
            let before = self.nodes[at];
            self.pull_up(at);
            if self.nodes[at] == before {
                return;
            }
        }
    }

    fn pull_up(&mut self, at: usize) {
        let (left, right) = (self.nodes[2 * at], self.nodes[2 * at + 1]);
        self.nodes[at] = Amounts(std::array::from_fn(|i| left.0[i].max(right.0[i])));
    }

    /// The first bin, from `from` on, that has room for `need`.
    pub fn first_fit(&self, need: &Amounts, from: usize) -> Option<usize> {
        if from >= self.bins || self.nodes.is_empty() {
            return None;
        }
        let width = self.width();
        // Upwards from `from`, to the right: each step looks at a subtree that begins where the last one ended.
        let mut at = width + from;
        loop {
            if need.fits(&self.nodes[at])
                && let Some(found) = self.descend(at, need)
            {
                return (found < self.bins).then_some(found);
            }
            // To the next subtree on the right: a right child's is its parent's neighbour.
            while at & 1 == 1 {
                at /= 2;
                if at <= 1 {
                    return None;
                }
            }
            at += 1;
        }
    }

    /// The first fitting bin below `at`: that no resource lacks below it is no proof that one bin has all of them.
    fn descend(&self, at: usize, need: &Amounts) -> Option<usize> {
        if !need.fits(&self.nodes[at]) {
            return None;
        }
        if at >= self.width() {
            return Some(at - self.width());
        }
        self.descend(2 * at, need).or_else(|| self.descend(2 * at + 1, need))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_finds_what_a_walk_would_find() {
        let (mut tree, mut plain, mut state) = (FreeTree::default(), Vec::new(), 7u64);
        let mut draw = |most: u64| {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            (state >> 33) % most
        };
        for round in 0..2_000 {
            if round % 3 == 0 || plain.is_empty() {
                let free = Amounts::of(draw(10), draw(10), 0);
                tree.push(free);
                plain.push(free);
            } else {
                let (bin, free) = (draw(plain.len() as u64) as usize, Amounts::of(draw(10), draw(10), 0));
                tree.set(bin, free);
                plain[bin] = free;
            }
            let (need, from) = (Amounts::of(draw(12), draw(12), 0), draw(plain.len() as u64 + 2) as usize);
            let walked = plain.iter().enumerate().skip(from).find(|(_, free)| need.fits(free)).map(|(i, _)| i);
            assert_eq!(tree.first_fit(&need, from), walked, "round {round}, {need:?} from {from} of {plain:?}");
            assert_eq!(tree.len(), plain.len());
        }
    }
}
