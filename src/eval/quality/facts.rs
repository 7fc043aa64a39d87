//! Stored judgments with dense indices: the input of every quality figure.

use std::cmp::Ordering;
use std::collections::{BTreeMap, HashMap};

use super::agreement::Unit;
use super::bradley_terry::{Match, Won};
use super::consensus::Vote;
use super::length::Preference;
use crate::domain::{
    CompletionId, CompletionOrigin, JudgedItem, JudgedSet, Labeler, LabelerId, Outcome, PromptId, SetId, SetKind,
};

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

impl<K: std::hash::Hash + Eq + Clone> Numbers<K> {
    fn of(&mut self, key: &K) -> (usize, bool) {
        let next = self.0.len();
        // A copy of the key is cheaper than hashing it twice.
        let number = *self.0.entry(key.clone()).or_insert(next);
        (number, number == next)
    }
}

/// Builds [`Facts`] from judgments that come one by one, so that they are never all in memory with their ids.
pub struct FactsBuilder {
    facts: Facts,
    people: HashMap<LabelerId, usize>,
    prompts: Numbers<PromptId>,
    sets: Numbers<SetId>,
    items: Numbers<CompletionId>,
}

impl FactsBuilder {
    pub fn new(labelers: &[Labeler]) -> Self {
        let person =
            |l: &Labeler| Person { id: l.id.clone(), name: l.name.clone(), role: l.role.as_str(), active: l.active };
        let facts = Facts {
            people: labelers.iter().map(person).collect(),
            sets: Vec::new(),
            items: Vec::new(),
            authors: Vec::new(),
            prompts: 0,
            judged: Vec::new(),
            compared: SetKind::Normal,
        };
        Self {
            facts,
            people: labelers.iter().enumerate().map(|(i, l)| (l.id.clone(), i)).collect(),
            prompts: Numbers(HashMap::new()),
            sets: Numbers(HashMap::new()),
            items: Numbers(HashMap::new()),
        }
    }

    /// Adds a judgment; its set and completions count even if its labeler is not known.
    pub fn add(&mut self, judgment: &JudgedSet) {
        let (set, is_new) = self.sets.of(&judgment.set_id);
        if is_new {
            let (prompt, _) = self.prompts.of(&judgment.prompt_id);
            let (id, kind) = (judgment.set_id.clone(), judgment.kind);
            self.facts.sets.push(Set { id, kind, prompt, items: vec![], expected: BTreeMap::new() });
        }
        let mut ranked = Vec::with_capacity(judgment.items.len());
        for item in &judgment.items {
            ranked.push((self.item(set, item), item.tier, item.shown_position));
        }
        ranked.sort_unstable();
        let Some(labeler) = self.people.get(&judgment.labeler_id).copied() else { return };
        self.facts.judged.push(Judged {
            set,
            labeler,
            outcome: judgment.outcome,
            active_ms: judgment.active_ms,
            leased: judgment.leased,
            items: ranked,
        });
    }

    /// The index of a completion, which belongs to the set from now on.
    fn item(&mut self, set: usize, item: &JudgedItem) -> usize {
        let (items, sets) = (&mut self.facts.items, &mut self.facts.sets);
        // Most judgments are of a set that others judged: a look at its few completions spares the hash.
        if let Some(known) = sets[set].items.iter().find(|known| items[**known].id == item.completion_id) {
            return *known;
        }
        let (number, is_new) = self.items.of(&item.completion_id);
        if is_new {
            let author = match (&item.model_version_id, item.origin) {
                (Some(id), _) => Some(Author::Version(id.clone())),
                (None, CompletionOrigin::Human) => Some(Author::Human),
                (None, _) => None,
            };
            // There are few authors.
            let authors = &mut self.facts.authors;
            let author = author.map(|author| {
                authors.iter().position(|known| *known == author).unwrap_or_else(|| {
                    authors.push(author);
                    authors.len() - 1
                })
            });
            items.push(Item { id: item.completion_id.clone(), author, length: item.length as f64 });
        }
        if let Err(at) = sets[set].items.binary_search(&number) {
            sets[set].items.insert(at, number);
        }
        number
    }

    /// The facts; `gold` holds (set, completion, expected tier) of every set with a known answer.
    pub fn finish(self, gold: &[(SetId, CompletionId, i64)]) -> Facts {
        let mut facts = self.facts;
        for (set, completion, tier) in gold {
            if let (Some(set), Some(item)) = (self.sets.0.get(set), self.items.0.get(completion)) {
                facts.sets[*set].expected.insert(*item, *tier);
            }
        }
        facts.prompts = self.prompts.0.len();
        facts
    }
}

impl Facts {
    /// `gold` holds (set, completion, expected tier) of every set with a known answer.
    pub fn new(judged: &[JudgedSet], gold: &[(SetId, CompletionId, i64)], labelers: &[Labeler]) -> Self {
        let mut builder = FactsBuilder::new(labelers);
        judged.iter().for_each(|judgment| builder.add(judgment));
        builder.finish(gold)
    }

    /// Restricts the compared judgments to sets of `kind`.
    pub fn of(self, kind: SetKind) -> Self {
        Self { compared: kind, ..self }
    }

    /// The compared judgments.
    pub fn compared(&self) -> impl Iterator<Item = &Judged> {
        self.judged.iter().filter(|j| self.sets[j.set].kind == self.compared)
    }

    /// The compared judgments, ordered by set.
    pub fn by_set(&self) -> Vec<&Judged> {
        let mut judged: Vec<&Judged> = self.compared().collect();
        judged.sort_by_key(|j| j.set);
        judged
    }

    /// Ratings of each pair of each set, ordered by set and pair.
    pub fn units(&self) -> Vec<Unit> {
        let mut units = Vec::new();
        let mut ratings: Vec<((usize, usize), (usize, usize))> = Vec::new();
        for of_set in self.by_set().chunk_by(|a, b| a.set == b.set) {
            ratings.clear();
            for judged in of_set {
                for (a, b, order) in judged.pairs() {
                    let category = match order {
                        Ordering::Greater => 0,
                        Ordering::Equal => 1,
                        Ordering::Less => 2,
                    };
                    ratings.push(((a, b), (judged.labeler, category)));
                }
            }
            ratings.sort_by_key(|(pair, _)| *pair);
            for of_pair in ratings.chunk_by(|a, b| a.0 == b.0) {
                let ratings = of_pair.iter().map(|(_, rating)| *rating).collect();
                units.push(Unit { cluster: of_set[0].set, ratings });
            }
        }
        units
    }

    /// Votes for the consensus. A ranking of K has K − 1 independent comparisons, so each of its K (K − 1) / 2 pairs
    /// has weight 2 / K.
    pub fn votes(&self) -> Vec<Vote> {
        let mut votes = Vec::new();
        for judged in self.compared().filter(|j| j.outcome == Outcome::Ranked) {
            let weight = 2.0 / judged.items.len().max(2) as f64;
            for (i, a) in judged.items.iter().enumerate() {
                for b in &judged.items[i + 1..] {
                    let (first, second) = if a.2 <= b.2 { (a, b) } else { (b, a) };
                    let preferred_first = match first.1.cmp(&second.1) {
                        Ordering::Less => 1.0,
                        Ordering::Equal => 0.5,
                        Ordering::Greater => 0.0,
                    };
                    votes.push(Vote { by: judged.labeler, first: first.0, second: second.0, preferred_first, weight });
                }
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
