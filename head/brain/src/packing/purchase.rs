//! The cheapest new nodes for a set of demands: variable-sized vector bin packing, cost first, then few nodes.
//!
//! Where that is few enough to look at everything, it is the optimum (`exact`). Else several ways are tried and the
//! cheapest result is taken: first-fit decreasing (Johnson 1973), so that the answer is never worse than that, and a greedy
//! choice of the best filled node per unit of money whose prices of demands are corrected round by round by what they
//! turned out to cost (sequential value correction, after Belov and Scheithauer 2007,
//! <https://doi.org/10.1287/ijoc.1050.0132>). What comes out is then improved (`improve`). Looking ends early where nothing
//! can be cheaper, or where nothing better was found for long.

use std::collections::BTreeMap;

use super::exact::exact;
use super::improve::improve;
use super::tree::FreeTree;
use super::{Amounts, DIMENSIONS, GPUS};

/// A sort of node that can be bought.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Kind {
    pub capacity: Amounts,
    /// Of one, in any unit of money.
    pub price: u64,
    /// At most so many.
    pub most: u32,
}

/// Demands that are alike.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Class {
    pub need: Amounts,
    pub count: u32,
    /// Demands of the same number are never together on one node.
    pub apart: Option<u32>,
}

/// Places in the list of classes, and how many of each.
pub type Content = Vec<(usize, u32)>;

/// One new node and what is to go on it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Bin {
    pub kind: usize,
    pub content: Content,
}

/// New nodes, and what found no place on any, by class.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Purchase {
    pub bins: Vec<Bin>,
    pub left: Vec<u32>,
}

impl Purchase {
    pub fn cost(&self, kinds: &[Kind]) -> u64 {
        self.bins.iter().fold(0, |sum, bin| sum.saturating_add(kinds[bin.kind].price))
    }

    /// What is better is less: fewer demands left over, then money, then nodes.
    fn rank(&self, kinds: &[Kind]) -> (u64, u64, usize) {
        (self.left.iter().map(|n| u64::from(*n)).sum(), self.cost(kinds), self.bins.len())
    }
}

/// How much looking at demands a purchase may cost: a bound on time that is the same on every machine.
const EFFORT: u64 = 600_000;
/// So many rounds that find nothing better are the last.
const PATIENCE: u64 = 400;
/// More rounds than this gain nothing.
const MAX_ROUNDS: u64 = 3_000;
/// After so many rounds values have settled: from then on they are shaken.
const SETTLED: u64 = 40;
/// A round in which only one node of a sort is bought at a time finds more, and takes longer.
const SINGLE_DEMANDS: u32 = 200;
/// Demands of more different shapes than this are packed by first fit alone, which takes their number times its logarithm.
pub(crate) const MAX_CLASSES: usize = 400;

/// What is the same for every way of packing.
pub(super) struct Problem<'p> {
    pub kinds: &'p [Kind],
    pub classes: &'p [Class],
    /// By class: the kinds that may be bought for it.
    pub openers: Vec<Vec<u32>>,
    /// By class: what one costs at least, if it pays for its share of a node only.
    pub fair: Vec<f64>,
    /// By class: the smallest share that one takes of a node that may be bought for it.
    pub size: Vec<f64>,
    /// By kind: one divided by how much it has of each resource.
    inverse: Vec<[f64; DIMENSIONS]>,
}

impl<'p> Problem<'p> {
    pub fn new(kinds: &'p [Kind], classes: &'p [Class]) -> Self {
        let inverse = kinds.iter().map(|k| k.capacity.0.map(|n| if n == 0 { 0.0 } else { 1.0 / n as f64 })).collect();
        let mut problem = Self { kinds, classes, openers: Vec::with_capacity(classes.len()), fair: Vec::new(), size: Vec::new(), inverse };
        for class in classes {
            let openers = openers(kinds, class);
            let (mut fair, mut size) = (f64::INFINITY, f64::INFINITY);
            for kind in &openers {
                let share = problem.share(&class.need, *kind as usize);
                size = size.min(share);
                fair = fair.min(share * kinds[*kind as usize].price as f64);
            }
            problem.openers.push(openers);
            problem.fair.push(fair);
            problem.size.push(size);
        }
        problem
    }

    /// The largest share that a need takes of any one resource of a kind that has them all.
    pub fn share(&self, need: &Amounts, kind: usize) -> f64 {
        need.0.iter().zip(&self.inverse[kind]).map(|(need, inverse)| *need as f64 * inverse).fold(0.0, f64::max)
    }

    pub fn opens(&self, class: usize, kind: usize) -> bool {
        self.openers[class].contains(&(kind as u32))
    }

    /// How many of a class fit into a node's room beside what is there.
    pub fn copies(&self, class: usize, room: &Amounts, content: &[(usize, u32)]) -> u32 {
        let Class { need, apart, .. } = &self.classes[class];
        match apart {
            None => need.copies_in(room),
            Some(_) if !need.fits(room) || content.iter().any(|(other, _)| self.classes[*other].apart == *apart) => 0,
            Some(_) => 1,
        }
    }

    /// Of the kinds that may be bought for a class and are still to be had, the one that costs least by a measure.
    fn cheapest(&self, class: usize, room: &[u32], cost: impl Fn(&Self, usize) -> f64) -> Option<usize> {
        let to_be_had = self.openers[class].iter().map(|k| *k as usize).filter(|k| room[*k] > 0);
        to_be_had.map(|k| (cost(self, k), k)).min_by(|(a, i), (b, j)| a.total_cmp(b).then(i.cmp(j))).map(|(_, k)| k)
    }
}

/// GPUs are not bought for work that needs none, as long as anything else would do.
fn openers(kinds: &[Kind], class: &Class) -> Vec<u32> {
    let fitting = || (0..kinds.len()).filter(|k| kinds[*k].most > 0 && class.need.fits(&kinds[*k].capacity));
    let without_gpus = || fitting().filter(|k| kinds[*k].capacity.0[GPUS] == 0);
    let any = class.need.wants_gpus() || without_gpus().next().is_none();
    if any { fitting().map(|k| k as u32).collect() } else { without_gpus().map(|k| k as u32).collect() }
}

/// Finds the cheapest new nodes for all of `classes` that `kinds` allow.
pub fn purchase(kinds: &[Kind], classes: &[Class]) -> Purchase {
    let problem = Problem::new(kinds, classes);
    if let Some(optimum) = exact(&problem) {
        return optimum;
    }
    let mut best = first_fit(&problem, &|class, room| by_share(&problem, class, room));
    let floor = at_least(kinds, classes);
    // Whether it is worth looking on, and whether this one was better.
    let mut consider = |candidate: Purchase| {
        let is_better = candidate.rank(kinds) < best.rank(kinds);
        if is_better {
            best = candidate;
        }
        Considered { is_better, is_least: best.rank(kinds) <= (0, floor.0, floor.1) }
    };
    let by_price = first_fit(&problem, &|class, room| problem.cheapest(class, room, |p, k| p.kinds[k].price as f64));
    if consider(by_price).is_least {
        return best;
    }
    // What a node of each kind alone would make of it.
    if kinds.len() * classes.len() <= MAX_CLASSES {
        for kind in 0..kinds.len() {
            let first = |class: usize, room: &[u32]| {
                let is_possible = room[kind] > 0 && problem.opens(class, kind);
                if is_possible { Some(kind) } else { by_share(&problem, class, room) }
            };
            consider(first_fit(&problem, &first));
        }
    }
    if classes.len() <= MAX_CLASSES {
        correct_values(&problem, &mut consider);
    }
    improve(&problem, best)
}

/// What became of a purchase that was held against the best so far.
struct Considered {
    is_better: bool,
    /// No purchase is better than the best.
    is_least: bool,
}

/// What any purchase that leaves nothing over costs, and how many nodes it has, at least.
pub fn at_least(kinds: &[Kind], classes: &[Class]) -> (u64, usize) {
    let total = classes.iter().fold(Amounts::default(), |sum, c| sum.plus(&c.need.times(c.count)));
    let (mut cost, mut nodes) = (0.0f64, 0);
    for (resource, needed) in total.0.into_iter().enumerate().filter(|(_, needed)| *needed > 0) {
        let offering = || kinds.iter().filter(move |k| k.most > 0 && k.capacity.0[resource] > 0);
        let unit = offering().map(|k| k.price as f64 / k.capacity.0[resource] as f64).fold(f64::INFINITY, f64::min);
        let largest = offering().map(|k| k.capacity.0[resource]).max().unwrap_or(u64::MAX);
        cost = cost.max(needed as f64 * unit);
        nodes = nodes.max(needed.div_ceil(largest) as usize);
    }
    // Prices are whole: what is above the last one is the next, but for what floating numbers lose.
    let mut cost = (cost - 1e-6 * cost.max(1.0)).ceil().max(0.0) as u64;
    // What is kept apart takes a node each.
    let mut apart: BTreeMap<u32, (u64, usize)> = BTreeMap::new();
    for class in classes {
        let Some(number) = class.apart else { continue };
        let fitting = kinds.iter().filter(|k| k.most > 0 && class.need.fits(&k.capacity));
        let least = fitting.map(|k| k.price).min().unwrap_or_default();
        let of_number = apart.entry(number).or_default();
        of_number.0 = of_number.0.saturating_add(least.saturating_mul(u64::from(class.count)));
        of_number.1 += class.count as usize;
    }
    for (of_number, count) in apart.into_values() {
        (cost, nodes) = (cost.max(of_number), nodes.max(count));
    }
    (cost, nodes)
}

/// The plain way, which nothing that [`purchase`] finds is worse than: demands by falling size, each into the first node
/// with room, else into a new one of the kind whose share it takes is the cheapest.
pub fn first_fit_decreasing(kinds: &[Kind], classes: &[Class]) -> Purchase {
    let problem = Problem::new(kinds, classes);
    first_fit(&problem, &|class, room| by_share(&problem, class, room))
}

fn by_share(problem: &Problem<'_>, class: usize, room: &[u32]) -> Option<usize> {
    let need = &problem.classes[class].need;
    problem.cheapest(class, room, |p, k| p.kinds[k].price as f64 * p.share(need, k))
}

fn first_fit(problem: &Problem<'_>, preferred: &dyn Fn(usize, &[u32]) -> Option<usize>) -> Purchase {
    let Problem { kinds, classes, size, .. } = problem;
    // What needs a GPU first: what does not may then go beside it, and never the other way round.
    let mut order: Vec<usize> = (0..classes.len()).collect();
    order.sort_unstable_by(|i, j| {
        classes[*j].need.wants_gpus().cmp(&classes[*i].need.wants_gpus()).then(size[*j].total_cmp(&size[*i])).then(i.cmp(j))
    });
    let mut room: Vec<u32> = kinds.iter().map(|k| k.most).collect();
    let (mut bins, mut free): (Vec<Bin>, FreeTree) = (Vec::new(), FreeTree::default());
    let mut left = vec![0; classes.len()];
    for class in order {
        let need = classes[class].need;
        let mut waiting = classes[class].count;
        let mut from = 0;
        while waiting > 0
            && let Some(at) = free.first_fit(&need, from)
        {
            let room = free.get(at);
            let taken = problem.copies(class, &room, &bins[at].content).min(waiting);
            if taken > 0 {
                bins[at].content.push((class, taken));
                free.set(at, room.minus(&need.times(taken)));
                waiting -= taken;
            }
            from = at + 1;
        }
        while waiting > 0
            && let Some(kind) = preferred(class, &room)
        {
            let taken = problem.copies(class, &kinds[kind].capacity, &[]).min(waiting);
            room[kind] -= 1;
            bins.push(Bin { kind, content: vec![(class, taken)] });
            free.push(kinds[kind].capacity.minus(&need.times(taken)));
            waiting -= taken;
        }
        left[class] = waiting;
    }
    Purchase { bins, left }
}

/// The greedy choice, again and again, each time with values nearer to what demands really cost.
fn correct_values(problem: &Problem<'_>, consider: &mut impl FnMut(Purchase) -> Considered) {
    let (kinds, classes) = (problem.kinds, problem.classes);
    let mut values: Vec<f64> = problem.fair.iter().map(|fair| if fair.is_finite() { *fair } else { 0.0 }).collect();
    let (mut effort, mut round) = (0, 0);
    let demands: u32 = classes.iter().fold(0, |sum, c| sum.saturating_add(c.count));
    let mut tried = values.clone();
    let mut gained = 0;
    while effort < EFFORT && round < MAX_ROUNDS && round < gained + PATIENCE {
        let (candidate, looked) = greedy(problem, &tried, round % 2 == 1 && demands <= SINGLE_DEMANDS);
        effort += looked + (classes.len() + 4 * candidate.bins.len()) as u64;
        round += 1;
        // What a class cost: each node's price falls on its content in proportion to the content's values.
        if round > SETTLED {
            tried = values.iter().enumerate().map(|(class, value)| value * shake(round, class)).collect();
            let considered = consider(candidate);
            if considered.is_least {
                return;
            }
            gained = if considered.is_better { round } else { gained };
            continue;
        }
        let (mut paid, mut count) = (vec![0.0; classes.len()], vec![0.0; classes.len()]);
        for bin in &candidate.bins {
            let worth: f64 = bin.content.iter().map(|(c, n)| values[*c] * f64::from(*n)).sum();
            let factor = kinds[bin.kind].price as f64 / worth.max(f64::MIN_POSITIVE);
            for (class, n) in &bin.content {
                paid[*class] += values[*class] * f64::from(*n) * factor;
                count[*class] += f64::from(*n);
            }
        }
        // The further on, the smaller the steps: values settle.
        let step = 1.0 / (1.5 + round as f64 / 20.0);
        for class in 0..classes.len() {
            if count[class] > 0.0 {
                values[class] += step * (paid[class] / count[class] - values[class]);
            }
        }
        tried.clone_from(&values);
        let considered = consider(candidate);
        if considered.is_least {
            return;
        }
        gained = if considered.is_better { round } else { gained };
    }
}

/// A factor around 1 that differs by round and class and is always the same for both: the last step of `SplitMix64`.
fn shake(round: u64, class: usize) -> f64 {
    let mut z = (round << 20 | class as u64).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    0.6 + 0.8 * ((z >> 40) as f64 / (1u64 << 24) as f64)
}

/// Buys, again and again, the node whose best content is worth the most for its price.
fn greedy(problem: &Problem<'_>, values: &[f64], singly: bool) -> (Purchase, u64) {
    let (kinds, classes) = (problem.kinds, problem.classes);
    let mut waiting: Vec<u32> = classes.iter().map(|c| c.count).collect();
    let mut room: Vec<u32> = kinds.iter().map(|k| k.most).collect();
    let mut bins = Vec::new();
    let mut looked = 0u64;
    // By kind, what is worth the most for the room that it takes first, and what is largest first.
    let orders: Vec<[Vec<usize>; 2]> = kinds.iter().enumerate().map(|(k, kind)| orders(problem, k, kind, values)).collect();
    // Sorting costs about as much as ten looks at each.
    looked += (10 * kinds.len() * classes.len()) as u64;
    loop {
        let mut best: Option<(f64, f64, usize, Content)> = None;
        for (k, kind) in kinds.iter().enumerate().filter(|(k, _)| room[*k] > 0) {
            for way in 0..(2 + usize::from(singly)) {
                let (content, worth) = if let Some(order) = orders[k].get(way) {
                    looked += order.len() as u64;
                    fill(problem, k, kind, order, &waiting, values)
                } else {
                    fill_evenly(problem, k, &orders[k][0], &waiting, values, &mut looked)
                };
                if content.is_empty() {
                    continue;
                }
                let ratio = worth / (kind.price as f64).max(f64::MIN_POSITIVE);
                if best.as_ref().is_none_or(|(r, w, ..)| ratio > *r || (ratio == *r && worth > *w)) {
                    best = Some((ratio, worth, k, content));
                }
            }
        }
        let Some((_, _, kind, content)) = best else { break };
        let most = if singly { 1 } else { room[kind] };
        let alike = content.iter().map(|(class, n)| waiting[*class] / n).min().unwrap_or(1).min(most).max(1);
        for (class, n) in &content {
            waiting[*class] -= n * alike;
        }
        room[kind] -= alike;
        bins.extend(std::iter::repeat_n(Bin { kind, content }, alike as usize));
    }
    (Purchase { bins, left: waiting }, looked)
}

fn orders(problem: &Problem<'_>, k: usize, kind: &Kind, values: &[f64]) -> [Vec<usize>; 2] {
    let fitting = || (0..problem.classes.len()).filter(|c| problem.classes[*c].need.fits(&kind.capacity));
    let share = |c: usize| problem.share(&problem.classes[c].need, k);
    let density = |c: usize| values[c] / share(c).max(f64::MIN_POSITIVE);
    let gpus = |c: usize| problem.classes[c].need.wants_gpus();
    let mut by_density: Vec<(bool, f64, usize)> = fitting().map(|c| (gpus(c), density(c), c)).collect();
    let mut by_size: Vec<(bool, f64, usize)> = fitting().map(|c| (gpus(c), share(c), c)).collect();
    for order in [&mut by_density, &mut by_size] {
        order.sort_by(|(g, a, i), (h, b, j)| h.cmp(g).then(b.total_cmp(a)).then(i.cmp(j)));
    }
    [by_density, by_size].map(|order| order.into_iter().map(|(_, _, c)| c).collect())
}

/// What goes onto a node of a kind so that its resources are used up together: one demand after the other, each the one
/// that leaves the least free, resources weighted by how much of them is wanted (the norm-based greedy of Panigrahy et
/// al. 2011, "Heuristics for vector bin packing"). A demand's value counts as it does elsewhere.
fn fill_evenly(problem: &Problem<'_>, k: usize, order: &[usize], waiting: &[u32], values: &[f64], looked: &mut u64) -> (Content, f64) {
    let kind = &problem.kinds[k];
    let (mut free, mut waiting) = (kind.capacity, waiting.to_vec());
    let (mut content, mut worth): (Content, f64) = (Vec::new(), 0.0);
    let mut wanted = [0.0; DIMENSIONS];
    for class in order {
        let need = &problem.classes[*class].need;
        for (resource, sum) in wanted.iter_mut().enumerate() {
            *sum += need.0[resource] as f64 * problem.inverse[k][resource] * f64::from(waiting[*class]);
        }
    }
    let left = |free: &Amounts, need: &Amounts| -> f64 {
        let of = |r: usize| wanted[r] * ((free.0[r] - need.0[r]) as f64 * problem.inverse[k][r]).powi(2);
        (0..DIMENSIONS).map(of).sum()
    };
    loop {
        *looked += order.len() as u64;
        let mut best: Option<(bool, f64, usize)> = None;
        for class in order.iter().copied().filter(|c| waiting[*c] > 0) {
            if content.is_empty() && !problem.opens(class, k) || problem.copies(class, &free, &content) == 0 {
                continue;
            }
            let need = &problem.classes[class].need;
            let density = values[class] / (problem.share(need, k) * kind.price as f64).max(f64::MIN_POSITIVE);
            let found = (!need.wants_gpus(), left(&free, need) / density.max(f64::MIN_POSITIVE), class);
            if best.is_none_or(|known| (found.0, found.1) < (known.0, known.1)) {
                best = Some(found);
            }
        }
        let Some((.., class)) = best else { return (content, worth) };
        match content.iter_mut().find(|(c, _)| *c == class) {
            Some((_, n)) => *n += 1,
            None => content.push((class, 1)),
        }
        waiting[class] -= 1;
        free = free.minus(&problem.classes[class].need);
        worth += values[class];
    }
}

/// What goes onto a node of a kind, in an order, of what still waits; nothing if nothing that waits would buy it.
fn fill(problem: &Problem<'_>, k: usize, kind: &Kind, order: &[usize], waiting: &[u32], values: &[f64]) -> (Vec<(usize, u32)>, f64) {
    let mut free = kind.capacity;
    let (mut content, mut worth, mut is_opened) = (Vec::new(), 0.0, false);
    for class in order.iter().copied().filter(|c| waiting[*c] > 0) {
        if !is_opened && !problem.opens(class, k) {
            continue;
        }
        let taken = problem.copies(class, &free, &content).min(waiting[class]);
        if taken > 0 {
            is_opened = true;
            content.push((class, taken));
            free = free.minus(&problem.classes[class].need.times(taken));
            worth += values[class] * f64::from(taken);
        }
    }
    (content, worth)
}
