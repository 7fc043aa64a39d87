//! Stored judgments with dense indices: the input of every quality figure.

use std::cmp::Ordering;
use std::collections::{BTreeMap, HashMap};

use super::agreement::Unit;
use super::bradley_terry::{Match, Won};
use super::consensus::Vote;
use super::length::Preference;
use crate::domain::{CompletionId, CompletionOrigin, JudgedSet, Labeler, LabelerId, Outcome, PromptId, SetId, SetKind};

/// A labeler; its index is its position.
#[derive(Clone, Debug)]
pub struct Person {
    pub id: LabelerId,
    pub name: String,
    pub role: &'static str,
    pub active: bool,
}

/// A set; its index is its position.
#[derive(Clone, Debug)]
pub struct Set {
    pub id: SetId,
    pub kind: SetKind,
    pub prompt: usize,
    /// Items that were judged in it, ascending.
    pub items: Vec<usize>,
    /// The known answer: tier by item; empty for normal sets.
    pub expected: BTreeMap<usize, i64>,
}

/// A completion; its index is its position.
#[derive(Clone, Debug)]
pub struct Item {
    pub id: CompletionId,
    /// Author (index into `Facts::authors`); `None` for imported and edited text.
    pub author: Option<usize>,
    /// Characters.
    pub length: f64,
}

/// One labeler's latest judgment of a set.
#[derive(Clone, Debug)]
pub struct Judged {
    pub set: usize,
    pub labeler: usize,
    pub outcome: Outcome,
    pub active_ms: i64,
    /// Whether the set was shown on the page in a random order; not for rankings by the API.
    pub leased: bool,
    /// (item, tier, shown position), by item.
    pub items: Vec<(usize, i64, i64)>,
}

impl Judged {
    /// (item, item, order of their tiers: less = the first is better) of each pair; nothing unless ranked.
    pub fn pairs(&self) -> impl Iterator<Item = (usize, usize, Ordering)> {
        let ranked = if self.outcome == Outcome::Ranked { self.items.as_slice() } else { &[] };
        let after = |i: usize| ranked[i + 1..].iter();
        ranked.iter().enumerate().flat_map(move |(i, a)| after(i).map(move |b| (a.0, b.0, a.1.cmp(&b.1))))
    }

    pub fn tiers(&self) -> Vec<(usize, i64)> {
        self.items.iter().map(|(item, tier, _)| (*item, *tier)).collect()
    }

    /// Whether the completion shown first was preferred to the one shown last; `None` for a tie.
    pub fn first_against_last(&self) -> Option<bool> {
        if self.outcome != Outcome::Ranked {
            return None;
        }
        let first = self.items.iter().min_by_key(|i| i.2)?;
        let last = self.items.iter().max_by_key(|i| i.2)?;
        (first.1 != last.1).then_some(first.1 < last.1)
    }
}

/// An author of compared completions.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Author {
    Version(crate::domain::ModelVersionId),
    Human,
}

#[derive(Clone, Debug)]
pub struct Facts {
    pub people: Vec<Person>,
    pub sets: Vec<Set>,
    pub items: Vec<Item>,
    pub authors: Vec<Author>,
    pub prompts: usize,
    pub judged: Vec<Judged>,
    /// Sets whose judgments are compared. Sets of other kinds only measure accuracy: the answer of practice sets is
    /// shown after the judgment, so agreement on them has no meaning.
    pub compared: SetKind,
}

/// Assigns consecutive indices to keys.
struct Numbers<K>(HashMap<K, usize>);

impl<K: std::hash::Hash + Eq> Numbers<K> {
    fn of(&mut self, key: K) -> (usize, bool) {
        let next = self.0.len();
        let number = *self.0.entry(key).or_insert(next);
        (number, number == next)
    }
}

impl Facts {
    /// `gold` holds (set, completion, expected tier) of every set with a known answer.
    pub fn new(judged: &[JudgedSet], gold: &[(SetId, CompletionId, i64)], labelers: &[Labeler]) -> Self {
        let mut facts = Self {
            people: Vec::new(),
            sets: Vec::new(),
            items: Vec::new(),
            authors: Vec::new(),
            prompts: 0,
            judged: Vec::new(),
            compared: SetKind::Normal,
        };
        let mut people = Numbers(HashMap::<&LabelerId, usize>::new());
        for l in labelers {
            people.of(&l.id);
            let role = l.role.as_str();
            facts.people.push(Person { id: l.id.clone(), name: l.name.clone(), role, active: l.active });
        }
        let mut prompts = Numbers(HashMap::<&PromptId, usize>::new());
        let mut sets = Numbers(HashMap::<&SetId, usize>::new());
        let mut items = Numbers(HashMap::<&CompletionId, usize>::new());
        let mut authors = Numbers(HashMap::<Author, usize>::new());
        for j in judged {
            let (prompt, _) = prompts.of(&j.prompt_id);
            let (set, new) = sets.of(&j.set_id);
            if new {
                let set = Set { id: j.set_id.clone(), kind: j.kind, prompt, items: vec![], expected: BTreeMap::new() };
                facts.sets.push(set);
            }
            let mut ranked = Vec::with_capacity(j.items.len());
            for i in &j.items {
                let (item, new) = items.of(&i.completion_id);
                if new {
                    let author = match (&i.model_version_id, i.origin) {
                        (Some(id), _) => Some(Author::Version(id.clone())),
                        (None, CompletionOrigin::Human) => Some(Author::Human),
                        (None, _) => None,
                    };
                    let author = author.map(|author| {
                        let (number, new) = authors.of(author.clone());
                        if new {
                            facts.authors.push(author);
                        }
                        number
                    });
                    facts.items.push(Item { id: i.completion_id.clone(), author, length: i.length as f64 });
                }
                ranked.push((item, i.tier, i.shown_position));
                if let Err(at) = facts.sets[set].items.binary_search(&item) {
                    facts.sets[set].items.insert(at, item);
                }
            }
            ranked.sort_unstable();
            let Some(labeler) = people.0.get(&j.labeler_id).copied() else { continue };
            facts.judged.push(Judged {
                set,
                labeler,
                outcome: j.outcome,
                active_ms: j.active_ms,
                leased: j.leased,
                items: ranked,
            });
        }
        for (set, completion, tier) in gold {
            if let (Some(set), Some(item)) = (sets.0.get(set), items.0.get(completion)) {
                facts.sets[*set].expected.insert(*item, *tier);
            }
        }
        facts.prompts = prompts.0.len();
        facts
    }

    /// Restricts the compared judgments to sets of `kind`.
    pub fn of(self, kind: SetKind) -> Self {
        Self { compared: kind, ..self }
    }

    /// The compared judgments.
    pub fn compared(&self) -> impl Iterator<Item = &Judged> {
        self.judged.iter().filter(|j| self.sets[j.set].kind == self.compared)
    }

    /// Ratings of each pair of each set.
    pub fn units(&self) -> Vec<Unit> {
        let mut units: BTreeMap<(usize, usize, usize), Vec<(usize, usize)>> = BTreeMap::new();
        for judged in self.compared() {
            for (a, b, order) in judged.pairs() {
                let category = match order {
                    Ordering::Greater => 0,
                    Ordering::Equal => 1,
                    Ordering::Less => 2,
                };
                units.entry((judged.set, a, b)).or_default().push((judged.labeler, category));
            }
        }
        units.into_iter().map(|((cluster, _, _), ratings)| Unit { cluster, ratings }).collect()
    }

    /// Votes for the consensus. A ranking of K has K − 1 independent comparisons, so each of its K (K − 1) / 2 pairs
    /// has weight 2 / K.
    pub fn votes(&self) -> Vec<Vote> {
        let mut votes = Vec::new();
        for judged in self.compared() {
            let shown: HashMap<usize, i64> = judged.items.iter().map(|i| (i.0, i.2)).collect();
            let weight = 2.0 / judged.items.len().max(2) as f64;
            for (a, b, order) in judged.pairs() {
                let (first, second, order) =
                    if shown[&a] <= shown[&b] { (a, b, order) } else { (b, a, order.reverse()) };
                let preferred_first = match order {
                    Ordering::Less => 1.0,
                    Ordering::Equal => 0.5,
                    Ordering::Greater => 0.0,
                };
                votes.push(Vote { by: judged.labeler, first, second, preferred_first, weight });
            }
        }
        votes
    }

    /// Comparisons of different authors: each judgment weighs 1 over its pairs, as in training. The
    /// covariate is tanh(length difference / its standard deviation), as in length-controlled AlpacaEval.
    pub fn matches(&self) -> Vec<Match> {
        let mut matches = Vec::new();
        for judged in self.compared() {
            let start = matches.len();
            for (a, b, order) in judged.pairs() {
                let (first, second) = (&self.items[a], &self.items[b]);
                let (Some(left), Some(right)) = (first.author, second.author) else { continue };
                if left == right {
                    continue;
                }
                let won = match order {
                    Ordering::Less => Won::A,
                    Ordering::Equal => Won::Tie,
                    Ordering::Greater => Won::B,
                };
                let cluster = self.sets[judged.set].prompt;
                matches.push(Match { a: left, b: right, won, weight: 1.0, x: first.length - second.length, cluster });
            }
            let pairs = matches.len() - start;
            for m in &mut matches[start..] {
                m.weight = 1.0 / pairs as f64;
            }
        }
        let n = matches.len().max(1) as f64;
        let deviation = (matches.iter().map(|m| m.x * m.x).sum::<f64>() / n).sqrt();
        for m in &mut matches {
            m.x = if deviation > 0.0 { (m.x / deviation).tanh() } else { 0.0 };
        }
        matches
    }

    /// Strict preferences with lengths; each judgment weighs 1 over its preferences.
    pub fn preferences(&self) -> Vec<Preference> {
        let mut preferences = Vec::new();
        for judged in self.compared() {
            let start = preferences.len();
            for (a, b, order) in judged.pairs().filter(|p| p.2.is_ne()) {
                let (preferred, other) = if order.is_lt() { (a, b) } else { (b, a) };
                preferences.push(Preference {
                    preferred: self.items[preferred].length,
                    other: self.items[other].length,
                    weight: 1.0,
                    cluster: self.sets[judged.set].prompt,
                });
            }
            let pairs = preferences.len() - start;
            for p in &mut preferences[start..] {
                p.weight = 1.0 / pairs as f64;
            }
        }
        preferences
    }
}
