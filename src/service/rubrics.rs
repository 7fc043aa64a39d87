//! Rubrics: presets, definitions and their versions, and which one is active.

use std::collections::HashSet;
use std::sync::Arc;

use serde_json::json;

use super::people::Actor;
use super::{Result, ServiceError, Services, bad_input, not_found_as, uncancelled};
use crate::domain::*;
use crate::store::RubricVersion;

const PRESETS: [(&str, &str); 3] = [
    ("instructgpt", include_str!("rubric_instructgpt.json")),
    ("hhh", include_str!("rubric_hhh.json")),
    ("ultrafeedback", include_str!("rubric_ultrafeedback.json")),
];

const MAX_DIMENSIONS: usize = 32;
const MAX_LANGUAGES: usize = 16;
/// Characters of a label, a name or the meaning of an end of a scale.
const MAX_LABEL: usize = 120;
const MAX_SUGGESTIONS: usize = 32;
/// Characters of one tag.
pub(super) const MAX_TAG: usize = 64;

/// A rubric to begin with.
#[derive(Clone, Debug, serde::Serialize, schemars::JsonSchema)]
pub struct Preset {
    pub id: &'static str,
    pub definition: RubricDefinition,
}

/// The rubrics that everybody has: InstructGPT's overall rating with its metadata (Ouyang et al. 2022, table 3),
/// helpful/honest/harmless (Askell et al. 2021) and UltraFeedback's four aspects (Cui et al. 2023).
///
/// # Errors
/// `Internal` where a preset of the program cannot be read.
pub fn presets() -> Result<Vec<Preset>> {
    PRESETS
        .into_iter()
        .map(|(id, text)| {
            let definition = serde_json::from_str(text)
                .map_err(|e| ServiceError::Internal(format!("the preset {id} cannot be read: {e}")))?;
            Ok(Preset { id, definition })
        })
        .collect()
}

/// All stored versions, newest first, and the one that is active in a project.
///
/// # Errors
/// Errors of the store.
pub async fn versions(services: &Services, project: &ProjectId) -> Result<(Vec<RubricVersion>, Option<Rubric>)> {
    let rubrics = services.store.rubrics();
    Ok((rubrics.list().await?, rubrics.active(project).await?))
}

/// The rubric that is active in a project.
///
/// # Errors
/// Errors of the store.
pub async fn active(services: &Services, project: &ProjectId) -> Result<Option<Rubric>> {
    Ok(services.store.rubrics().active(project).await?)
}

/// The rubric that a judgment's ratings are by; for a judgment without one the active rubric of its project, which a
/// revision is rated by.
pub(super) async fn of_judgment(
    services: &Services,
    judgment: &Judgment,
    project: &ProjectId,
) -> Result<Option<Rubric>> {
    match &judgment.rubric_version {
        Some(version) => Ok(Some(services.store.rubrics().get(version).await?.rubric)),
        None => active(services, project).await,
    }
}

/// Stores a definition, unless it is there, and activates it in the project where that is asked for.
///
/// # Errors
/// `BadInput` naming the field.
pub async fn put(
    services: &Arc<Services>,
    by: &Actor,
    project: &ProjectId,
    definition: RubricDefinition,
    activate: bool,
) -> Result<RubricVersion> {
    check(&definition)?;
    let version = version(&definition)?;
    let now = services.now();
    let stored =
        RubricVersion { rubric: Rubric { version, definition }, created: now, created_by: by.labeler_id.clone() };
    let (all, by, project) = (services.clone(), by.clone(), project.clone());
    uncancelled(async move {
        let version = stored.rubric.version.clone();
        let dimensions = stored.rubric.definition.dimensions.len();
        let detail = json!({"dimensions": dimensions, "activate": activate, "project": project});
        all.store.rubrics().put(stored).await?;
        if activate {
            all.store.rubrics().activate(&project, Some(&version), &by.labeler_id, now).await?;
        }
        all.store.audit_log().append(&by.signature(), "put_rubric", &version, detail, now).await?;
        Ok(all.store.rubrics().get(&version).await?)
    })
    .await
}

/// Activates a stored version in a project, or none.
///
/// # Errors
/// `NotFound` for a version that is not stored.
pub async fn activate(
    services: &Arc<Services>,
    by: &Actor,
    project: &ProjectId,
    version: Option<String>,
) -> Result<Option<Rubric>> {
    let (all, by, to, now) = (services.clone(), by.clone(), project.clone(), services.now());
    uncancelled(async move {
        let activated = all.store.rubrics().activate(&to, version.as_deref(), &by.labeler_id, now).await;
        activated.map_err(|e| not_found_as(e, "version"))?;
        let target = version.as_deref().unwrap_or("none");
        let detail = json!({"project": to});
        Ok(all.store.audit_log().append(&by.signature(), "activate_rubric", target, detail, now).await?)
    })
    .await?;
    active(services, project).await
}

/// First 12 hex digits of the SHA-256 of the definition as JSON.
fn version(definition: &RubricDefinition) -> Result<String> {
    let text = serde_json::to_vec(definition).map_err(|e| ServiceError::Internal(e.to_string()))?;
    Ok(hash::of_bytes(&text)[..12].to_owned())
}

fn check(definition: &RubricDefinition) -> Result<()> {
    check_text("name", &definition.name, MAX_LABEL)?;
    let dimensions = &definition.dimensions;
    if !(1..=MAX_DIMENSIONS).contains(&dimensions.len()) {
        return Err(bad_input(
            "dimensions",
            format!("has {} dimensions; must be 1 to {MAX_DIMENSIONS}", dimensions.len()),
        ));
    }
    let mut keys = HashSet::new();
    for (i, dimension) in dimensions.iter().enumerate() {
        let field = |name: &str| format!("dimensions[{i}].{name}");
        let key = &dimension.key;
        let fits = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'_';
        if key.is_empty() || key.len() > 64 || !key.bytes().all(fits) {
            return Err(bad_input(field("key"), format!("is {key:?}; must be 1 to 64 of a-z, 0-9 and _")));
        }
        if key == RANKING {
            return Err(bad_input(field("key"), "is \"ranking\", which names the labelers' ranking itself"));
        }
        if !keys.insert(key) {
            return Err(bad_input(field("key"), format!("is {key:?}, as the key of a dimension before it")));
        }
        check_texts(&field("label"), &dimension.label)?;
        if dimension.label.is_empty() {
            return Err(bad_input(field("label"), "is empty; give a label in one language or more"));
        }
        check_kind(dimension, field)?;
    }
    Ok(())
}

/// What each kind of dimension has, and what others have alone.
fn check_kind(dimension: &Dimension, field: impl Fn(&str) -> String) -> Result<()> {
    let kind = dimension.kind;
    if kind == DimensionKind::Likert {
        match dimension.points {
            Some(2..=10) => {}
            Some(points) => return Err(bad_input(field("points"), format!("is {points}; must be 2 to 10"))),
            None => return Err(bad_input(field("points"), "is missing; a likert dimension has 2 to 10 points")),
        }
        check_texts(&field("low"), &dimension.low)?;
        check_texts(&field("high"), &dimension.high)?;
    }
    let ends = !dimension.low.is_empty() || !dimension.high.is_empty();
    for (name, is_there) in [("points", dimension.points.is_some()), ("low", ends)] {
        if kind != DimensionKind::Likert && is_there {
            return Err(bad_input(field(name), format!("is of likert dimensions, and this one is {kind}")));
        }
    }
    if kind != DimensionKind::Tags && !dimension.suggestions.is_empty() {
        return Err(bad_input(field("suggestions"), format!("is of tags dimensions, and this one is {kind}")));
    }
    if dimension.suggestions.len() > MAX_SUGGESTIONS {
        let n = dimension.suggestions.len();
        return Err(bad_input(field("suggestions"), format!("has {n} tags; at most {MAX_SUGGESTIONS}")));
    }
    for (j, tag) in dimension.suggestions.iter().enumerate() {
        check_text(&field(&format!("suggestions[{j}]")), tag, MAX_TAG)?;
    }
    Ok(())
}

fn check_texts(field: &str, texts: &Texts) -> Result<()> {
    if texts.len() > MAX_LANGUAGES {
        return Err(bad_input(field, format!("has {} languages; at most {MAX_LANGUAGES}", texts.len())));
    }
    for (lang, text) in texts {
        let fits = |b: u8| b.is_ascii_alphanumeric() || b == b'-';
        if lang.is_empty() || lang.len() > 16 || !lang.bytes().all(fits) {
            return Err(bad_input(field, format!("names the language {lang:?}; must be a tag such as en or zh")));
        }
        check_text(&format!("{field}.{lang}"), text, MAX_LABEL)?;
    }
    Ok(())
}

/// One line of 1 to `most` characters without blanks at its ends.
pub(super) fn check_text(field: &str, text: &str, most: usize) -> Result<()> {
    if text.is_empty() || text.chars().count() > most || text.trim() != text || text.chars().any(char::is_control) {
        return Err(bad_input(
            field,
            format!("is {text:?}; must be one line of 1 to {most} characters, without blanks at its ends"),
        ));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn presets_are_valid_and_in_both_languages_of_the_pages() {
        let presets = presets().unwrap();
        assert_eq!(presets.iter().map(|p| p.id).collect::<Vec<_>>(), ["instructgpt", "hhh", "ultrafeedback"]);
        let dimensions: Vec<_> = presets.iter().map(|p| p.definition.dimensions.len()).collect();
        assert_eq!(dimensions, [12, 3, 4], "one rating and eleven flags; three; four");
        for preset in presets {
            check(&preset.definition).unwrap();
            for d in &preset.definition.dimensions {
                for texts in [&d.label, &d.low, &d.high] {
                    let languages: Vec<_> = texts.keys().map(String::as_str).collect();
                    assert!(languages.is_empty() || languages == ["en", "zh"], "{}: {} {texts:?}", preset.id, d.key);
                }
            }
        }
    }

    #[test]
    fn a_version_is_of_the_definition_alone() {
        let definition = presets().unwrap().remove(1).definition;
        let read: RubricDefinition = serde_json::from_str(&serde_json::to_string(&definition).unwrap()).unwrap();
        assert_eq!(version(&read).unwrap(), version(&definition).unwrap());
        let renamed = RubricDefinition { name: "other".into(), ..definition.clone() };
        assert_ne!(version(&renamed).unwrap(), version(&definition).unwrap());
        assert_eq!(version(&definition).unwrap().len(), 12);
    }
}
