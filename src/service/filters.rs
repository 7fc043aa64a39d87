//! Names in filters. A tag, labeler or language that does not occur is refused with the known names, because a filter
//! by it would silently find nothing.

use std::collections::BTreeSet;

use serde_json::Value;

use super::{Result, Services, bad_input};
use crate::domain::{DimensionKind, ProjectId, Prompt, RANKING, unknown_name};
use crate::store::{Page, PromptFilter, RankedFilter, StoreError};

/// Number of prompts in a page.
const PAGE: i64 = 1000;

/// `None` if some prompt has the name among its `names`; otherwise the names of all prompts.
async fn prompts_have(
    services: &Services,
    wanted: &str,
    names: impl Fn(&Prompt) -> Vec<String>,
) -> Result<Result<(), BTreeSet<String>>> {
    let mut seen = BTreeSet::new();
    let mut page = Page { after: None, limit: PAGE };
    loop {
        let batch = services.store.prompts().list(page.clone(), None).await?;
        let Some(last) = batch.last() else { return Ok(Err(seen)) };
        page.after = Some(last.id.to_string());
        for name in batch.iter().flat_map(&names) {
            if name == wanted {
                return Ok(Ok(()));
            }
            seen.insert(name);
        }
    }
}

fn refuse(field: String, what: &str, name: &str, known: &BTreeSet<String>) -> super::ServiceError {
    let known: Vec<&str> = known.iter().map(String::as_str).collect();
    bad_input(field, unknown_name(what, name, &known))
}

/// # Errors
/// `BadInput` naming the field of an unknown tag, labeler, rubric or dimension.
pub async fn check_ranked(services: &Services, filter: &RankedFilter, field: &str) -> Result<()> {
    if let Some(id) = &filter.labeler_id {
        match services.store.people().get(id).await {
            Ok(_) => {}
            Err(StoreError::NotFound { .. }) => {
                let models = services.store.model_judgments().labelers().await?;
                if !filter.labelers.is_human() && models.iter().any(|model| model.id == *id) {
                    return check_others(services, filter, field).await;
                }
                let people = services.store.people().list().await?.into_iter().map(|l| l.id.to_string());
                let models = models.into_iter().map(|l| l.id.to_string()).filter(|_| !filter.labelers.is_human());
                let known = people.chain(models).collect();
                return Err(refuse(format!("{field}.labeler_id"), "labeler", id.as_str(), &known));
            }
            Err(other) => return Err(other.into()),
        }
    }
    check_others(services, filter, field).await
}

/// Checks all names but the labeler's.
async fn check_others(services: &Services, filter: &RankedFilter, field: &str) -> Result<()> {
    check_by_rating(services, filter, field).await?;
    check_project(services, filter.project.as_ref(), field).await?;
    check_tag(services, filter.tag.as_deref(), field).await
}

/// The rubric is stored and has the dimension, whose values have an order.
async fn check_by_rating(services: &Services, filter: &RankedFilter, field: &str) -> Result<()> {
    let Some(by) = &filter.by_rating else { return Ok(()) };
    let field = |name: &str| format!("{field}.by_rating.{name}");
    let stored = services.store.rubrics().list().await?;
    let Some(found) = stored.iter().find(|v| v.rubric.version == by.rubric) else {
        let known = stored.into_iter().map(|v| v.rubric.version).collect();
        return Err(refuse(field("rubric"), "rubric", &by.rubric, &known));
    };
    let ordered = found.rubric.definition.dimensions.iter().filter(|d| d.kind != DimensionKind::Tags);
    let known: BTreeSet<String> = ordered.map(|d| d.key.clone()).collect();
    if !known.contains(&by.dimension) {
        return Err(refuse(field("dimension"), "scale or flag", &by.dimension, &known));
    }
    if filter.feedback {
        return Err(bad_input(field("rubric"), "goes without feedback, which has no ratings"));
    }
    Ok(())
}

/// Checks that the arguments of a job of kind `reward` name dimensions that can be learned: of the stored rubric that
/// they name, or else of any.
///
/// # Errors
/// `BadInput` naming the field of an unknown rubric or dimension.
pub async fn check_dimensions(services: &Services, args: &Value) -> Result<()> {
    let Some(weights) = args.get("dimensions").and_then(Value::as_object) else { return Ok(()) };
    let stored = services.store.rubrics().list().await?;
    let named = args.get("rubric").and_then(Value::as_str);
    if let Some(version) = named.filter(|version| stored.iter().all(|v| v.rubric.version != *version)) {
        let known = stored.into_iter().map(|v| v.rubric.version).collect();
        return Err(refuse("args.rubric".to_owned(), "rubric", version, &known));
    }
    let of = stored.iter().filter(|v| named.is_none_or(|version| v.rubric.version == version));
    let ordered = of.flat_map(|v| &v.rubric.definition.dimensions).filter(|d| d.kind != DimensionKind::Tags);
    let known: BTreeSet<String> = ordered.map(|d| d.key.clone()).collect();
    match weights.keys().find(|key| *key != RANKING && !known.contains(*key)) {
        Some(key) => Err(refuse("args.dimensions".to_owned(), "scale or flag", key, &known)),
        None => Ok(()),
    }
}

async fn check_project(services: &Services, project: Option<&ProjectId>, field: &str) -> Result<()> {
    let Some(id) = project else { return Ok(()) };
    let all = services.store.projects().list().await?;
    if all.iter().any(|p| p.id == *id) {
        return Ok(());
    }
    let known = all.into_iter().map(|p| p.id.to_string()).collect();
    Err(refuse(format!("{field}.project"), "project", id.as_str(), &known))
}

async fn check_tag(services: &Services, tag: Option<&str>, field: &str) -> Result<()> {
    let Some(tag) = tag else { return Ok(()) };
    match prompts_have(services, tag, |p| p.tags.clone()).await? {
        Ok(()) => Ok(()),
        Err(known) => Err(refuse(format!("{field}.tag"), "tag", tag, &known)),
    }
}

/// # Errors
/// `BadInput` naming the field of a tag, language or source that no prompt has.
pub async fn check_prompts(services: &Services, filter: &PromptFilter, field: &str) -> Result<()> {
    check_project(services, filter.project.as_ref(), field).await?;
    check_tag(services, filter.tag.as_deref(), field).await?;
    if let Some(lang) = &filter.lang
        && let Err(known) = prompts_have(services, lang, |p| p.lang.clone().into_iter().collect()).await?
    {
        return Err(refuse(format!("{field}.lang"), "language", lang, &known));
    }
    if let Some(source) = &filter.source
        && let Err(known) = prompts_have(services, source, |p| vec![p.source.clone()]).await?
    {
        return Err(refuse(format!("{field}.source"), "source", source, &known));
    }
    Ok(())
}
