//! The optimum, where demands are few and of few shapes: dynamic programming over how many of each shape still wait, with
//! every filling of a node as a step (the one-dimensional case is in Gilmore and Gomory 1961).

use super::Amounts;
use super::purchase::{Bin, Problem, Purchase};

/// Numbers of waiting demands that are told apart, at most.
const MAX_STATES: usize = 60_000;
/// States times fillings.
const MAX_STEPS: usize = 600_000;
/// Fillings of all kinds.
const MAX_FILLINGS: usize = 2_000;

struct Filling {
    kind: usize,
    price: u64,
    content: Vec<u32>,
}

/// The cheapest purchase, if it can be found in a bounded number of steps and no kind is bought more often than allowed.
pub(super) fn exact(problem: &Problem<'_>) -> Option<Purchase> {
    let servable: Vec<usize> = (0..problem.classes.len()).filter(|c| !problem.openers[*c].is_empty()).collect();
    if problem.classes.iter().any(|c| c.apart.is_some()) {
        return None;
    }
    let counts: Vec<u32> = servable.iter().map(|c| problem.classes[*c].count).collect();
    let states = counts.iter().try_fold(1usize, |all, n| all.checked_mul(*n as usize + 1)).filter(|n| *n <= MAX_STATES)?;
    let fillings = fillings(problem, &servable, &counts)?;
    if states.saturating_mul(fillings.len()) > MAX_STEPS {
        return None;
    }
    let strides: Vec<usize> = counts.iter().scan(1, |stride, n| Some(std::mem::replace(stride, *stride * (*n as usize + 1)))).collect();
    // By state: cost, number of nodes, the filling taken, and the state after it.
    let mut best: Vec<(u64, u32, usize, usize)> = vec![(0, 0, usize::MAX, 0); states];
    let mut waiting = vec![0u32; servable.len()];
    for state in 1..states {
        // The next number, the first digit counts fastest.
        for (digit, most) in waiting.iter_mut().zip(&counts) {
            if *digit < *most {
                *digit += 1;
                break;
            }
            *digit = 0;
        }
        let first = waiting.iter().rposition(|n| *n > 0)?;
        let mut cheapest: Option<(u64, u32, usize, usize)> = None;
        for (f, filling) in fillings.iter().enumerate().filter(|(_, f)| f.content[first] > 0) {
            let (mut next, mut is_opened) = (state, false);
            for i in 0..servable.len() {
                let taken = filling.content[i].min(waiting[i]);
                next -= strides[i] * taken as usize;
                is_opened |= taken > 0 && problem.opens(servable[i], filling.kind);
            }
            let (cost, nodes) = (best[next].0 + filling.price, best[next].1 + 1);
            if is_opened && cheapest.is_none_or(|(c, n, ..)| (cost, nodes) < (c, n)) {
                cheapest = Some((cost, nodes, f, next));
            }
        }
        best[state] = cheapest?;
    }
    let (mut state, mut waiting, mut bins) = (states - 1, counts, Vec::new());
    let mut bought = vec![0u32; problem.kinds.len()];
    while state > 0 {
        let (.., f, next) = best[state];
        let filling = &fillings[f];
        bought[filling.kind] += 1;
        let mut content = Vec::new();
        for (i, class) in servable.iter().enumerate() {
            let taken = filling.content[i].min(waiting[i]);
            waiting[i] -= taken;
            if taken > 0 {
                content.push((*class, taken));
            }
        }
        bins.push(Bin { kind: filling.kind, content });
        state = next;
    }
    let is_allowed = bought.iter().zip(problem.kinds).all(|(n, kind)| *n <= kind.most);
    let left = (0..problem.classes.len()).map(|c| if servable.contains(&c) { 0 } else { problem.classes[c].count }).collect();
    is_allowed.then_some(Purchase { bins, left })
}

/// Every filling of every kind to which nothing can be added, or nothing if that is too many.
fn fillings(problem: &Problem<'_>, classes: &[usize], counts: &[u32]) -> Option<Vec<Filling>> {
    let mut found = Vec::new();
    for (k, kind) in problem.kinds.iter().enumerate().filter(|(_, k)| k.most > 0) {
        let mut content = vec![0; classes.len()];
        let mut steps = MAX_STEPS / 10;
        fill(problem, classes, counts, kind.capacity, 0, &mut content, &mut steps, &mut |content| {
            found.push(Filling { kind: k, price: kind.price, content: content.to_vec() });
            found.len() <= MAX_FILLINGS
        })?;
    }
    Some(found)
}

#[expect(clippy::too_many_arguments, reason = "a recursion over what all of them say")]
fn fill(
    problem: &Problem<'_>,
    classes: &[usize],
    counts: &[u32],
    free: Amounts,
    i: usize,
    content: &mut Vec<u32>,
    steps: &mut usize,
    take: &mut impl FnMut(&[u32]) -> bool,
) -> Option<()> {
    *steps = steps.checked_sub(1)?;
    let need = |i: usize| &problem.classes[classes[i]].need;
    if i == classes.len() {
        let is_full = (0..classes.len()).all(|i| content[i] == counts[i] || !need(i).fits(&free));
        return if !is_full || content.iter().all(|n| *n == 0) || take(content) { Some(()) } else { None };
    }
    for n in 0..=need(i).copies_in(&free).min(counts[i]) {
        content[i] = n;
        fill(problem, classes, counts, free.minus(&need(i).times(n)), i + 1, content, steps, take)?;
    }
    content[i] = 0;
    Some(())
}
