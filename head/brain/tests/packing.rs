//! The cost of what is bought, against an exact solver and against first-fit decreasing, on random instances.

use cloudtik_brain::packing::{Amounts, Class, Kind, Purchase, first_fit_decreasing, purchase};
use cloudtik_simulation::Random;
use good_lp::{Expression, ProblemVariables, Solution, SolverModel, constraint, default_solver, variable};

/// Kinds such as clouds sell, and demands that fit at least one.
fn instance(seed: u64, most_classes: u64, most_count: u64) -> (Vec<Kind>, Vec<Class>) {
    let mut random = Random::new(seed);
    let mut kinds = Vec::new();
    for _ in 0..random.between(1, 4) {
        let (cpus, per_cpu) = (1 << random.between(1, 4), [2, 4, 8][random.between(0, 2) as usize]);
        // Large machines are about as dear per core as small ones, memory costs, and offers differ.
        let price = (cpus * 40 + cpus * per_cpu * 5) * random.between(85, 115) / 100;
        kinds.push(Kind { capacity: Amounts::of(cpus * 1_000, cpus * per_cpu, 0), price, most: 1_000 });
    }
    if random.between(0, 2) == 0 {
        kinds.push(Kind { capacity: Amounts::of(8_000, 64, 4_000), price: random.between(2_000, 4_000), most: 1_000 });
    }
    let with_gpus = kinds.iter().any(|k| k.capacity.0[2] > 0);
    let mut classes = Vec::new();
    for _ in 0..random.between(1, most_classes) {
        let gpus = if with_gpus && random.between(0, 3) == 0 { random.between(1, 4) * 500 } else { 0 };
        let need = Amounts::of(random.between(1, 12) * 500, random.between(1, 24), gpus);
        if kinds.iter().any(|k| need.fits(&k.capacity)) {
            classes.push(Class { need, count: random.between(1, most_count) as u32, apart: None });
        }
    }
    (kinds, classes)
}

/// What a purchase says must be so: everything placed once, no node overfull.
fn check(kinds: &[Kind], classes: &[Class], found: &Purchase) {
    let mut placed = vec![0; classes.len()];
    for (number, kind) in kinds.iter().enumerate() {
        assert!(found.bins.iter().filter(|bin| bin.kind == number).count() <= kind.most as usize, "more than there may be of {kind:?}");
    }
    for bin in &found.bins {
        for apart in bin.content.iter().filter_map(|(class, _)| classes[*class].apart) {
            let together: u32 = bin.content.iter().filter(|(class, _)| classes[*class].apart == Some(apart)).map(|(_, n)| n).sum();
            assert!(together <= 1, "{bin:?} has {together} that must be apart");
        }
        let mut load = Amounts::default();
        for (class, n) in &bin.content {
            placed[*class] += n;
            load = load.plus(&classes[*class].need.times(*n));
        }
        assert!(load.fits(&kinds[bin.kind].capacity), "{bin:?} is overfull");
    }
    for (class, Class { count, .. }) in classes.iter().enumerate() {
        assert_eq!(placed[class] + found.left[class], *count);
    }
}

/// The optimum, by choosing among all fillings of all kinds.
fn optimum(kinds: &[Kind], classes: &[Class]) -> Option<u64> {
    let mut patterns: Vec<(u64, Vec<u32>)> = Vec::new();
    for kind in kinds {
        let mut found = Vec::new();
        fillings(classes, kind.capacity, 0, &mut vec![0; classes.len()], &mut found);
        patterns.extend(found.into_iter().map(|p| (kind.price, p)));
    }
    if patterns.len() > 120 {
        return None;
    }
    let mut variables = ProblemVariables::new();
    let chosen: Vec<_> = patterns.iter().map(|_| variables.add(variable().integer().min(0).max(200))).collect();
    let cost: Expression = chosen.iter().zip(&patterns).map(|(x, (price, _))| *x * *price as f64).sum();
    let mut model = variables.minimise(cost.clone()).using(default_solver);
    for (class, wanted) in classes.iter().enumerate() {
        let covered: Expression = chosen.iter().zip(&patterns).map(|(x, (_, p))| *x * f64::from(p[class])).sum();
        model = model.with(constraint!(covered >= f64::from(wanted.count)));
    }
    let solution = model.solve().ok()?;
    Some(solution.eval(&cost).round() as u64)
}

/// All fillings to which nothing can be added.
fn fillings(classes: &[Class], free: Amounts, class: usize, content: &mut Vec<u32>, found: &mut Vec<Vec<u32>>) {
    if class == classes.len() {
        let full = classes.iter().zip(content.iter()).all(|(c, n)| *n == c.count || !c.need.fits(&free));
        if full && content.iter().any(|n| *n > 0) {
            found.push(content.clone());
        }
        return;
    }
    for n in 0..=classes[class].need.copies_in(&free).min(classes[class].count) {
        content[class] = n;
        fillings(classes, free.minus(&classes[class].need.times(n)), class + 1, content, found);
    }
    content[class] = 0;
}

/// Compares so many seeds; returns how many were compared, how many of them were optimal, and the worst ratio.
fn compare(seeds: std::ops::Range<u64>, most_classes: u64, most_count: u64) -> (u32, u32, f64) {
    let (mut compared, mut optimal, mut worst) = (0, 0, 1.0f64);
    for seed in seeds {
        let (kinds, classes) = instance(seed, most_classes, most_count);
        let found = purchase(&kinds, &classes);
        check(&kinds, &classes, &found);
        assert_eq!(found.left.iter().sum::<u32>(), 0, "seed {seed}");
        let Some(best) = optimum(&kinds, &classes).filter(|best| *best > 0) else { continue };
        let cost = found.cost(&kinds);
        compared += 1;
        optimal += u32::from(cost <= best);
        let ratio = cost as f64 / best as f64;
        if ratio > 1.0 {
            println!("seed {seed}: {cost} against {best}: {ratio:.3}");
        }
        worst = worst.max(ratio);
    }
    println!("{compared} compared, {optimal} optimal, worst {worst:.3}");
    (compared, optimal, worst)
}

#[test]
fn few_demands_cost_the_optimum() {
    let (compared, optimal, _) = compare(0..80, 4, 12);
    assert!(compared > 60 && optimal == compared);
}

#[test]
fn many_demands_cost_little_more_than_the_optimum() {
    let (compared, _, worst) = compare(5_000..5_125, 5, 16);
    assert!(compared > 100);
    assert!(worst <= 1.05);
}

#[test]
fn it_is_never_dearer_than_first_fit_decreasing() {
    for seed in 0..300 {
        let (kinds, classes) = instance(1_000_000 + seed, 60, 40);
        let (found, plain) = (purchase(&kinds, &classes), first_fit_decreasing(&kinds, &classes));
        check(&kinds, &classes, &found);
        assert!(found.cost(&kinds) <= plain.cost(&kinds), "seed {seed}");
    }
}

#[test]
fn limits_hold_and_what_must_be_apart_is() {
    let (mut bound, mut spread) = (0, 0);
    for seed in 0..300 {
        let (mut kinds, mut classes) = instance(2_000_000 + seed, 12, 12);
        let mut random = Random::new(seed);
        kinds.iter_mut().for_each(|kind| kind.most = random.between(1, 5) as u32);
        classes.iter_mut().for_each(|class| class.apart = (random.between(0, 2) == 0).then(|| random.between(1, 2) as u32));
        let found = purchase(&kinds, &classes);
        check(&kinds, &classes, &found);
        bound += u32::from(found.left.iter().any(|left| *left > 0));
        spread += u32::from(found.bins.iter().flat_map(|bin| &bin.content).any(|(class, _)| classes[*class].apart.is_some()));
    }
    assert!(bound > 100 && spread > 100, "{bound} were short of nodes, {spread} had something to keep apart");
}
