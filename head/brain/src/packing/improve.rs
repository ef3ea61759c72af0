//! Makes a purchase cheaper: a few of its nodes are emptied and filled again by exact search, as often as that helps, and
//! each node is exchanged for the cheapest that holds what is on it.

use super::purchase::{Bin, Problem, Purchase};
use super::{Amounts, DIMENSIONS};

/// Demands that are looked at together.
const MAX_DEMANDS: u32 = 18;
/// Steps of one exact search.
const STEPS: u32 = 2_000;
/// Steps of all of them.
const ALL_STEPS: u32 = 12_000;
/// Nodes that are worked on.
const MAX_NODES: usize = 64;

pub(super) fn improve(problem: &Problem<'_>, mut purchase: Purchase) -> Purchase {
    downsize(problem, &mut purchase);
    // The worst used nodes: the others leave little to gain.
    let mut order: Vec<(f64, usize)> = purchase.bins.iter().enumerate().map(|(i, bin)| (use_of(problem, bin), i)).collect();
    order.sort_unstable_by(|(a, i), (b, j)| a.total_cmp(b).then(i.cmp(j)));
    let mut is_open = vec![false; purchase.bins.len()];
    order.iter().take(MAX_NODES).for_each(|(_, i)| is_open[*i] = true);
    let mut room: Vec<u32> = problem.kinds.iter().map(|k| k.most).collect();
    let (mut open, mut done) = (Vec::new(), Vec::new());
    for (bin, is_open) in purchase.bins.into_iter().zip(is_open) {
        if is_open {
            open.push(bin);
        } else {
            room[bin.kind] = room[bin.kind].saturating_sub(1);
            done.push(bin);
        }
    }
    let mut bins = Bins { open, room, steps: ALL_STEPS };
    // First all at once, if that is few.
    let demands: u32 = bins.open.iter().map(demands_of).sum();
    if demands <= 2 * MAX_DEMANDS {
        let all: Vec<usize> = (0..bins.open.len()).collect();
        refill(problem, &mut bins, &all, STEPS * 4);
    }
    let (mut width, mut stride) = (4, 1);
    while bins.steps > 0 && bins.open.len() > 1 && width > 1 {
        if sweep(problem, &mut bins, width, stride) {
            continue;
        }
        // The same neighbours again would give the same: others, then fewer of them.
        stride = stride * 2 + 1;
        if stride >= bins.open.len() {
            (stride, width) = (1, width - 1);
        }
    }
    done.append(&mut bins.open);
    Purchase { bins: done, left: purchase.left }
}

/// The nodes that are worked on.
struct Bins {
    open: Vec<Bin>,
    /// By kind, how many there may be of these.
    room: Vec<u32>,
    /// Steps of search that are left.
    steps: u32,
}

fn demands_of(bin: &Bin) -> u32 {
    bin.content.iter().map(|(_, n)| n).sum()
}

/// Goes over all nodes, those first that are worst used, a few of them at a time.
fn sweep(problem: &Problem<'_>, bins: &mut Bins, width: usize, stride: usize) -> bool {
    let mut order: Vec<(f64, usize)> = bins.open.iter().enumerate().map(|(i, bin)| (use_of(problem, bin), i)).collect();
    order.sort_by(|(a, i), (b, j)| a.total_cmp(b).then(i.cmp(j)));
    for start in 0..order.len() {
        let (mut chosen, mut demands) = (Vec::new(), 0);
        for step in 0..width {
            let (_, bin) = order[(start + step * stride) % order.len()];
            let more = demands_of(&bins.open[bin]);
            if chosen.contains(&bin) || demands + more > MAX_DEMANDS {
                continue;
            }
            chosen.push(bin);
            demands += more;
        }
        if chosen.len() < 2 || bins.steps == 0 {
            continue;
        }
        if refill(problem, bins, &chosen, STEPS) {
            // The order is of the past.
            return true;
        }
    }
    false
}

/// The share of a node's price that its content would pay by itself.
fn use_of(problem: &Problem<'_>, bin: &Bin) -> f64 {
    let fair: f64 = bin.content.iter().map(|(c, n)| problem.fair[*c] * f64::from(*n)).sum();
    fair / (problem.kinds[bin.kind].price as f64).max(f64::MIN_POSITIVE)
}

/// Each node becomes the cheapest that holds what is on it.
fn downsize(problem: &Problem<'_>, purchase: &mut Purchase) {
    let mut used = vec![0u32; problem.kinds.len()];
    for bin in &purchase.bins {
        used[bin.kind] += 1;
    }
    for bin in &mut purchase.bins {
        let load = bin.content.iter().fold(Amounts::default(), |sum, (c, n)| sum.plus(&problem.classes[*c].need.times(*n)));
        let now = &problem.kinds[bin.kind];
        let fits = |k: &usize| {
            let kind = &problem.kinds[*k];
            let opens = bin.content.iter().any(|(c, _)| problem.opens(*c, *k));
            kind.price < now.price && used[*k] < kind.most && load.fits(&kind.capacity) && opens
        };
        if let Some(cheaper) = (0..problem.kinds.len()).filter(fits).min_by_key(|k| (problem.kinds[*k].price, *k)) {
            used[bin.kind] -= 1;
            used[cheaper] += 1;
            bin.kind = cheaper;
        }
    }
}

/// Packs the content of some nodes anew; true if that is cheaper, or as cheap on fewer nodes.
fn refill(problem: &Problem<'_>, bins: &mut Bins, chosen: &[usize], limit: u32) -> bool {
    let mut room = bins.room.clone();
    let mut items = Vec::new();
    let mut price = 0u64;
    for (i, bin) in bins.open.iter().enumerate() {
        if chosen.contains(&i) {
            items.extend(bin.content.iter().flat_map(|(class, n)| std::iter::repeat_n(*class, *n as usize)));
            price += problem.kinds[bin.kind].price;
        } else {
            room[bin.kind] = room[bin.kind].saturating_sub(1);
        }
    }
    // What needs a GPU first: what does not may go beside it. Then by falling size, the alike together.
    let key = |c: usize| (problem.classes[c].need.wants_gpus(), problem.fair[c]);
    items.sort_by(|a, b| {
        let ((g, p), (h, q)) = (key(*a), key(*b));
        h.cmp(&g).then(q.total_cmp(&p)).then(a.cmp(b))
    });
    let mut search = Search::new(problem, &items, room, (price, chosen.len()), limit.min(bins.steps));
    search.place(0, 0);
    bins.steps -= search.used;
    let Some(found) = search.found else { return false };
    let mut index = 0;
    bins.open.retain(|_| {
        index += 1;
        !chosen.contains(&(index - 1))
    });
    bins.open.extend(found);
    true
}

/// Branch and bound over where each demand goes.
struct Search<'s, 'p> {
    problem: &'s Problem<'p>,
    items: &'s [usize],
    /// What the items from each on need together.
    rest: Vec<Amounts>,
    /// The least that one unit of each resource costs on any kind.
    unit_price: [f64; DIMENSIONS],
    room: Vec<u32>,
    open: Vec<(Bin, Amounts)>,
    price: u64,
    best: (u64, usize),
    found: Option<Vec<Bin>>,
    limit: u32,
    used: u32,
}

impl<'s, 'p> Search<'s, 'p> {
    fn new(problem: &'s Problem<'p>, items: &'s [usize], room: Vec<u32>, best: (u64, usize), limit: u32) -> Self {
        let mut rest = vec![Amounts::default(); items.len() + 1];
        for i in (0..items.len()).rev() {
            rest[i] = rest[i + 1].plus(&problem.classes[items[i]].need);
        }
        let of = |resource: usize| {
            let offering = problem.kinds.iter().zip(&room).filter(|(k, room)| **room > 0 && k.capacity.0[resource] > 0);
            offering.map(|(k, _)| k.price as f64 / k.capacity.0[resource] as f64).fold(f64::INFINITY, f64::min)
        };
        let unit_price = std::array::from_fn(of);
        Self { problem, items, rest, unit_price, room, open: Vec::new(), price: 0, best, found: None, limit, used: 0 }
    }

    /// No way to place the items from `i` on costs less than this.
    fn bound(&self, i: usize) -> u64 {
        let free = self.open.iter().fold(Amounts::default(), |sum, (_, free)| sum.plus(free));
        let missing = self.rest[i].minus(&free);
        let of = |(missing, price): (&u64, &f64)| if *missing == 0 { 0.0 } else { *missing as f64 * price };
        let most_expensive = missing.0.iter().zip(&self.unit_price).map(of).fold(0.0, f64::max);
        // Prices are whole: what is above the last one is the next, but for what floating numbers lose.
        if most_expensive.is_finite() { (most_expensive - 1e-6 * most_expensive.max(1.0)).ceil().max(0.0) as u64 } else { u64::MAX / 2 }
    }

    /// `least`: of demands that are alike, the later goes to no earlier node.
    fn place(&mut self, i: usize, least: usize) {
        if self.used >= self.limit {
            return;
        }
        self.used += 1;
        if i == self.items.len() {
            let reached = (self.price, self.open.len());
            if reached < self.best {
                self.best = reached;
                self.found = Some(self.open.iter().map(|(bin, _)| bin.clone()).collect());
            }
            return;
        }
        let bound = self.price.saturating_add(self.bound(i));
        if bound > self.best.0 || (bound == self.best.0 && self.open.len() >= self.best.1) {
            return;
        }
        let class = self.items[i];
        let need = self.problem.classes[class].need;
        let alike_next = self.items.get(i + 1) == Some(&class);
        // Nodes with the least room to spare first; of nodes that are the same, one.
        let mut candidates: Vec<usize> =
            (least..self.open.len()).filter(|b| self.problem.copies(class, &self.open[*b].1, &self.open[*b].0.content) > 0).collect();
        candidates.sort_by_key(|b| self.open[*b].1);
        candidates.dedup_by(|a, b| {
            let (one, other) = (&self.open[*a], &self.open[*b]);
            one.1 == other.1 && one.0.kind == other.0.kind && self.problem.classes[class].apart.is_none() && least == 0
        });
        for bin in candidates {
            let before = self.open[bin].1;
            self.open[bin].1 = before.minus(&need);
            add(&mut self.open[bin].0.content, class);
            self.place(i + 1, if alike_next { bin } else { 0 });
            take(&mut self.open[bin].0.content, class);
            self.open[bin].1 = before;
        }
        for k in 0..self.problem.openers[class].len() {
            let kind = self.problem.openers[class][k] as usize;
            if self.room[kind] == 0 {
                continue;
            }
            let (price, free) = (self.problem.kinds[kind].price, self.problem.kinds[kind].capacity.minus(&need));
            self.room[kind] -= 1;
            self.price += price;
            self.open.push((Bin { kind, content: vec![(class, 1)] }, free));
            let at = self.open.len() - 1;
            self.place(i + 1, if alike_next { at } else { 0 });
            self.open.pop();
            self.price -= price;
            self.room[kind] += 1;
        }
    }
}

fn add(content: &mut Vec<(usize, u32)>, class: usize) {
    match content.iter_mut().find(|(c, _)| *c == class) {
        Some((_, n)) => *n += 1,
        None => content.push((class, 1)),
    }
}

fn take(content: &mut Vec<(usize, u32)>, class: usize) {
    let Some(at) = content.iter().position(|(c, _)| *c == class) else { return };
    content[at].1 -= 1;
    if content[at].1 == 0 {
        content.remove(at);
    }
}
