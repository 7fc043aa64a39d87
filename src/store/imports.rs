//! Lines of imported files, many in one transaction. A line is identified by its content: a set by its prompt and
//! texts, a judgment by its set, its tiers and, if the file names one, its labeler.

use std::collections::{BTreeMap, BTreeSet};

use super::keys::{content_key, digest};
use super::locks::IMPORTS;
use super::rows::{Conn, args, json};
use super::{Result, StoreError, judgments, people, prompts, sets};
use crate::domain::*;

/// One line as rows of the store with new ids; known records keep theirs.
#[derive(Clone, Debug)]
#[expect(clippy::large_enum_variant, reason = "a batch holds few hundred lines")]
pub enum ImportLine {
    Ranking(Box<ImportedRanking>),
    Demonstration { prompt: Prompt, completion: Completion, labeler: Labeler },
    Prompt(Prompt),
}

#[derive(Clone, Debug)]
pub struct ImportedRanking {
    pub prompt: Prompt,
    /// Whether the file gives the prompt's side of the split.
    pub has_split: bool,
    pub completions: Vec<Completion>,
    pub set: ComparisonSet,
    /// The judgment; its labeler applies when the file names none; its items are in the order of the completions.
    pub judgment: Judgment,
    /// Name of the labeler in the file.
    pub labeler: Option<Labeler>,
    /// The ranking is a known answer of this kind, not a judgment.
    pub known_answer: Option<SetKind>,
    /// Explanation of the known answer.
    pub explanation: Option<String>,
}

/// Result of importing a line.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Imported {
    New,
    /// Everything existed already.
    Known,
    /// An existing record was changed or extended.
    Updated,
    /// The line contradicts existing records.
    Refused(String),
}

/// Result of importing a line, and the parts of it that were not applied.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ImportedLine {
    pub done: Imported,
    pub note: Option<String>,
}

impl From<Imported> for ImportedLine {
    fn from(done: Imported) -> Self {
        Self { done, note: None }
    }
}

fn refused(message: impl Into<String>) -> ImportedLine {
    Imported::Refused(message.into()).into()
}

/// All lines, in one transaction.
pub(super) async fn put(conn: &mut Conn, lines: &[ImportLine]) -> Result<Vec<ImportedLine>> {
    conn.serialize(IMPORTS).await?;
    let mut done = Vec::with_capacity(lines.len());
    let mut signed = Signed::default();
    for line in lines {
        done.push(match line {
            ImportLine::Ranking(ranking) => put_ranking(conn, ranking, &mut signed).await?,
            ImportLine::Demonstration { prompt, completion, labeler } => {
                put_labeler(conn, labeler, &mut signed).await?;
                let id = completion.id.clone();
                let stored =
                    prompts::put_demonstration(conn, prompt, completion.clone(), Some(&labeler.id), completion.created);
                let is_new = stored.await?.completion_id == id;
                if is_new { Imported::New } else { Imported::Known }.into()
            }
            ImportLine::Prompt(prompt) => put_prompt(conn, prompt).await?.into(),
        });
    }
    Ok(done)
}

/// Adds the line's tags to an existing prompt, and replaces its language and answer by the line's.
async fn put_prompt(conn: &mut Conn, given: &Prompt) -> Result<Imported> {
    let mut stored = prompts::put(conn, given).await?;
    if stored.id == given.id {
        return Ok(Imported::New);
    }
    let before = stored.clone();
    stored.tags.extend(given.tags.iter().filter(|t| !before.tags.contains(t)).cloned());
    stored.lang = given.lang.clone().or(stored.lang);
    stored.answer = given.answer.clone().or(stored.answer);
    if stored == before {
        return Ok(Imported::Known);
    }
    conn.run(
        "UPDATE prompts SET tags = $2, lang = $3, answer = $4 WHERE id = $1",
        args![stored.id.as_str(), json(&stored.tags)?, &stored.lang, &stored.answer],
    )
    .await?;
    Ok(Imported::Updated)
}

/// Labelers that are known to exist.
type Signed = BTreeSet<LabelerId>;

/// Creates a labeler for a person of another server, who cannot sign in.
async fn put_labeler(conn: &mut Conn, labeler: &Labeler, signed: &mut Signed) -> Result<()> {
    if signed.contains(&labeler.id) {
        return Ok(());
    }
    match people::get_labeler(conn, &labeler.id).await {
        Err(StoreError::NotFound { .. }) => people::put_labeler(conn, labeler).await?,
        found => drop(found?),
    }
    signed.insert(labeler.id.clone());
    Ok(())
}

/// Sets the key of the prompt's sets that were stored by earlier versions of this program.
async fn complete_keys(conn: &mut Conn, prompt_id: &str) -> Result<()> {
    let rows = conn
        .all(
            "SELECT s.id, c.text FROM comparison_sets s JOIN set_items i ON i.set_id = s.id
             JOIN completions c ON c.id = i.completion_id
             WHERE s.prompt_id = $1 AND s.content_key IS NULL ORDER BY s.id",
            args![prompt_id],
        )
        .await?;
    let mut without: BTreeMap<String, Vec<String>> = BTreeMap::new();
    for row in &rows {
        without.entry(row.text("id")?).or_default().push(row.text("text")?);
    }
    for (id, texts) in without {
        let texts: Vec<&str> = texts.iter().map(String::as_str).collect();
        conn.run("UPDATE comparison_sets SET content_key = $2 WHERE id = $1", args![&id, content_key(&texts).as_str()])
            .await?;
    }
    Ok(())
}

/// (text, tier) of a judgment or of a known answer.
type Places = Vec<(String, i64)>;

fn sorted(mut places: Places) -> Places {
    places.sort_unstable();
    places
}

/// The tiers of the labeler's latest judgment of a set: of the blind ones, or of the informed ones.
async fn places_of(conn: &mut Conn, set_id: &str, labeler: &LabelerId, is_blind: bool) -> Result<Option<Places>> {
    let latest = if is_blind {
        "SELECT id FROM judgments WHERE set_id = $1 AND labeler_id = $2 AND knowledge = 'blind'
         ORDER BY revision DESC LIMIT 1"
    } else {
        "SELECT id FROM judgments WHERE set_id = $1 AND labeler_id = $2 AND knowledge <> 'blind'
         ORDER BY revision DESC LIMIT 1"
    };
    let last = conn.one(latest, args![set_id, labeler.as_str()]).await?;
    let Some(last) = last else { return Ok(None) };
    let rows = conn
        .all(
            "SELECT c.text, i.tier FROM judgment_items i JOIN completions c ON c.id = i.completion_id
             WHERE i.judgment_id = $1",
            args![&last.text("id")?],
        )
        .await?;
    let places = rows.iter().map(|row| Ok((row.text("text")?, row.int("tier")?))).collect::<Result<_>>()?;
    Ok(Some(sorted(places)))
}

async fn put_ranking(conn: &mut Conn, line: &ImportedRanking, signed: &mut Signed) -> Result<ImportedLine> {
    let stored = prompts::put(conn, &line.prompt).await?;
    let is_new = stored.id == line.prompt.id;
    let note = (line.has_split && stored.split != line.prompt.split).then(|| {
        format!(
            "the prompt is stored with the split `{}` already; the file's `split` is not applied",
            stored.split.as_str()
        )
    });
    if !is_new {
        complete_keys(conn, stored.id.as_str()).await?;
    }
    let texts: Vec<&str> = line.completions.iter().map(|c| c.text.as_str()).collect();
    let key = content_key(&texts);
    let tiers = line.judgment.items.iter().map(|i| i.tier);
    let places = sorted(texts.iter().map(|t| (*t).to_owned()).zip(tiers).collect());
    let by_key = "SELECT id, kind, selection_policy FROM comparison_sets
                  WHERE prompt_id = $1 AND content_key = $2 ORDER BY id";
    let same = if is_new { Vec::new() } else { conn.all(by_key, args![stored.id.as_str(), key.as_str()]).await? };
    let mut known: Option<(SetId, SetKind)> = None;
    for row in &same {
        let id = row.text("id")?;
        // A file that is imported by the server that exported it.
        if let Some(labeler) = line.labeler.as_ref().filter(|_| line.known_answer.is_none()) {
            // A judgment by which a reviewer settled a set counts and is exported like any other.
            let kinds: &[bool] = if is_blind(line) { &[true, false] } else { &[false] };
            for kind in kinds {
                if places_of(conn, &id, &labeler.id, *kind).await?.is_some_and(|there| there == places) {
                    return Ok(Imported::Known.into());
                }
            }
        }
        if known.is_none() && row.text("selection_policy")? == "import" {
            known = Some((id.into(), row.name("kind", SetKind::parse)?));
        }
    }
    let done = match (known, line.known_answer) {
        (None, None) => {
            let set_id = put_set(conn, line, &stored, &key).await?;
            judge(conn, line, &set_id, true, &places, signed).await?
        }
        (Some((set_id, SetKind::Normal)), None) => judge(conn, line, &set_id, false, &places, signed).await?,
        (Some((set_id, kind)), None) => {
            if sorted(expected(conn, &set_id).await?) == places {
                Imported::Known.into()
            } else {
                refused(format!("the set has a known answer ({}) with another order", kind.as_str()))
            }
        }
        (None, Some(kind)) => {
            let set_id = put_set(conn, line, &stored, &key).await?;
            make_known(conn, &set_id, kind, &places, line.explanation.as_deref()).await?;
            Imported::New.into()
        }
        (Some((set_id, SetKind::Normal)), Some(kind)) => {
            make_known(conn, &set_id, kind, &places, line.explanation.as_deref()).await?;
            let note = Some("was a ranking before and is a known answer now".to_owned());
            ImportedLine { done: Imported::Updated, note }
        }
        (Some((set_id, before)), Some(kind)) => {
            if sorted(expected(conn, &set_id).await?) != places {
                refused(format!("the set has a known answer ({}) with another order", before.as_str()))
            } else {
                let there = sets::explanation(conn, &set_id).await?;
                let explanation = line.explanation.clone().or_else(|| there.clone());
                if before == kind && explanation == there {
                    Imported::Known.into()
                } else {
                    make_known(conn, &set_id, kind, &places, explanation.as_deref()).await?;
                    Imported::Updated.into()
                }
            }
        }
    };
    Ok(ImportedLine { note: done.note.or(note), done: done.done })
}

/// The expected places of a known answer, by text.
async fn expected(conn: &mut Conn, set_id: &SetId) -> Result<Places> {
    conn.all(
        "SELECT c.text, g.expected_tier FROM gold_items g JOIN completions c ON c.id = g.completion_id
         WHERE g.set_id = $1",
        args![set_id.as_str()],
    )
    .await?
    .iter()
    .map(|row| Ok((row.text("text")?, row.int("expected_tier")?)))
    .collect()
}

/// A completion of a stored set with the text and the place that the file gives it.
struct Placed {
    completion_id: CompletionId,
    text: String,
    tier: i64,
}

/// A set's completions with the places that the file gives their texts.
async fn placed(conn: &mut Conn, set_id: &SetId, places: &Places) -> Result<Vec<Placed>> {
    let rows = conn
        .all(
            "SELECT i.completion_id, c.text FROM set_items i JOIN completions c ON c.id = i.completion_id
             WHERE i.set_id = $1 ORDER BY i.position",
            args![set_id.as_str()],
        )
        .await?;
    let mut left = places.clone();
    let mut found = Vec::with_capacity(rows.len());
    for row in &rows {
        let text = row.text("text")?;
        // Equal texts are matched one after the other. Postgres stores U+0000 as U+FFFD.
        let at = left.iter().position(|(t, _)| *t == text || super::rows::without_nul(t.clone()) == text);
        let at = at.ok_or_else(|| StoreError::Conflict(format!("set {set_id} has different texts")))?;
        let (text, tier) = left.remove(at);
        found.push(Placed { completion_id: row.text("completion_id")?.into(), text, tier });
    }
    Ok(found)
}

async fn put_set(conn: &mut Conn, line: &ImportedRanking, prompt: &Prompt, key: &str) -> Result<SetId> {
    for completion in &line.completions {
        let completion = Completion { prompt_id: prompt.id.clone(), ..completion.clone() };
        prompts::put_completion(conn, &completion, None).await?;
    }
    let set = ComparisonSet { prompt_id: prompt.id.clone(), ..line.set.clone() };
    sets::insert(conn, &set, key).await?;
    Ok(set.id)
}

async fn make_known(
    conn: &mut Conn,
    set_id: &SetId,
    kind: SetKind,
    places: &Places,
    explanation: Option<&str>,
) -> Result<()> {
    let placed = placed(conn, set_id, places).await?;
    let tiers: Vec<_> = placed.into_iter().map(|p| (p.completion_id, p.tier)).collect();
    sets::make_gold(conn, set_id, kind, &tiers, explanation).await
}

/// Key of a judgment with these tiers on a set, when the file names no labeler.
fn unnamed_key(line: &ImportedRanking, set_id: &SetId, places: &Places) -> String {
    let strength = line.judgment.strength.map_or("", Strength::as_str);
    let tiers: Vec<String> = places.iter().map(|(_, tier)| tier.to_string()).collect();
    let knowledge = (!is_blind(line)).then(|| line.judgment.knowledge.as_str());
    let ratings = json(&rated(line)).map(|r| r.to_string()).unwrap_or_default();
    let ratings = (!line.judgment.ratings.is_empty()).then_some(ratings.as_str());
    let parts = [set_id.as_str(), strength].into_iter().chain(tiers.iter().map(String::as_str));
    format!("import:{}", digest(parts.chain(knowledge).chain(ratings)))
}

/// The line's ratings by text, with the version of their rubric.
fn rated(line: &ImportedRanking) -> (Option<&str>, BTreeSet<(&str, &str, String)>) {
    let text = |id: &CompletionId| line.completions.iter().find(|c| c.id == *id).map_or("", |c| c.text.as_str());
    let value = |r: &Rating| json(&r.value).unwrap_or_default().to_string();
    let ratings = line.judgment.ratings.iter();
    let ratings = ratings.map(|r| (text(&r.completion_id), r.dimension.as_str(), value(r)));
    (line.judgment.rubric_version.as_deref(), ratings.collect())
}

fn is_blind(line: &ImportedRanking) -> bool {
    line.judgment.knowledge == Knowledge::Blind
}

/// Adds the line's judgment to its set unless it exists. A set that this line has made (`is_new`) has no judgments and
/// the line's completions, so nothing is queried.
async fn judge(
    conn: &mut Conn,
    line: &ImportedRanking,
    set_id: &SetId,
    is_new: bool,
    places: &Places,
    signed: &mut Signed,
) -> Result<ImportedLine> {
    let unnamed = unnamed_key(line, set_id, places);
    if is_new {
        if let Some(labeler) = &line.labeler {
            put_labeler(conn, labeler, signed).await?;
        }
        let labeler_id = line.labeler.as_ref().map_or(&line.judgment.labeler_id, |l| &l.id).clone();
        let judgment = Judgment { labeler_id, idempotency_key: unnamed, ..line.judgment.clone() };
        return add(conn, set_id, &judgment).await;
    }
    let taken = "SELECT COUNT(*) AS n FROM judgments WHERE idempotency_key = $1 OR idempotency_key = $2";
    let is_taken = conn.count(taken, args![&unnamed, &line.judgment.idempotency_key]).await? > 0;
    let (labeler, key) = match &line.labeler {
        // The first judgment with these tiers is keyed by the tiers alone, so that files without names find it again.
        Some(labeler) => {
            if let Some(there) = places_of(conn, set_id.as_str(), &labeler.id, is_blind(line)).await? {
                return Ok(if there == *places {
                    Imported::Known.into()
                } else {
                    refused(format!("labeler {:?} has judged this set already with another order", labeler.name))
                });
            }
            let named = format!("{unnamed}:{}", labeler.id);
            (labeler.clone(), if is_taken { named } else { unnamed })
        }
        None if is_taken => return Ok(Imported::Known.into()),
        None => (unnamed_labeler(conn, line, set_id).await?, unnamed),
    };
    put_labeler(conn, &labeler, signed).await?;
    let placed = placed(conn, set_id, places).await?;
    let (ratings, spans) = moved(line, &placed);
    let items = (0i64..).zip(placed).map(|(shown_position, p)| JudgmentItem {
        completion_id: p.completion_id,
        tier: p.tier,
        shown_position,
        rating: None,
    });
    // A person's blind and informed judgments of a set are revisions of each other.
    let last = conn
        .one(
            "SELECT id, revision FROM judgments WHERE set_id = $1 AND labeler_id = $2 ORDER BY revision DESC LIMIT 1",
            args![set_id.as_str(), labeler.id.as_str()],
        )
        .await?;
    let (supersedes_id, revision) = match last {
        Some(last) => (Some(last.text("id")?.into()), last.int("revision")? + 1),
        None => (None, 1),
    };
    let judgment = Judgment {
        set_id: set_id.clone(),
        labeler_id: labeler.id,
        revision,
        supersedes_id,
        idempotency_key: key,
        items: items.collect(),
        ratings,
        spans,
        ..line.judgment.clone()
    };
    add(conn, set_id, &judgment).await
}

/// The line's ratings and spans on the completions that the set has already. Equal texts in equal places take theirs one
/// after the other.
fn moved(line: &ImportedRanking, placed: &[Placed]) -> (Vec<Rating>, Vec<Span>) {
    let mut left: Vec<(&Completion, i64)> =
        line.completions.iter().zip(line.judgment.items.iter().map(|item| item.tier)).collect();
    let (mut ratings, mut spans) = (Vec::with_capacity(line.judgment.ratings.len()), Vec::new());
    for p in placed {
        let Some(at) = left.iter().position(|(c, tier)| c.text == p.text && *tier == p.tier) else { continue };
        let (written, _) = left.remove(at);
        let of_text = line.judgment.ratings.iter().filter(|r| r.completion_id == written.id);
        ratings.extend(of_text.map(|r| Rating { completion_id: p.completion_id.clone(), ..r.clone() }));
        let of_text = line.judgment.spans.iter().filter(|s| s.completion_id == written.id);
        spans.extend(of_text.map(|s| Span { completion_id: p.completion_id.clone(), ..s.clone() }));
    }
    (ratings, spans)
}

/// Stores a judgment whose items are those of its set.
async fn add(conn: &mut Conn, set_id: &SetId, judgment: &Judgment) -> Result<ImportedLine> {
    judgments::append(conn, judgment).await?;
    judgments::refresh_status(conn, set_id).await?;
    Ok(Imported::New.into())
}

/// Of several judgments of a set without a name, each belongs to a different person.
async fn unnamed_labeler(conn: &mut Conn, line: &ImportedRanking, set_id: &SetId) -> Result<Labeler> {
    let base = &line.judgment.labeler_id;
    let row = conn
        .one("SELECT COUNT(*) AS n FROM judgments WHERE set_id = $1 AND revision = 1", args![set_id.as_str()])
        .await?;
    let count = row.map_or(Ok(0), |row| row.int("n"))?;
    // The plain name if it is free, whatever the order of the lines; otherwise the name with the next number.
    let mut number = 1;
    loop {
        let id = if number == 1 { base.to_string() } else { format!("{base}-{number}") };
        let labeler =
            Labeler { active: false, ..Labeler::new(id.as_str().into(), id, Role::Labeler, line.judgment.created) };
        if places_of(conn, set_id.as_str(), &labeler.id, true).await?.is_none()
            && places_of(conn, set_id.as_str(), &labeler.id, false).await?.is_none()
        {
            return Ok(labeler);
        }
        number = number.max(count) + 1;
    }
}
