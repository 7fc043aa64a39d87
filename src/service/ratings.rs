//! The ratings of a judgment, checked against a rubric.

use std::collections::HashSet;

use super::rubrics::{MAX_TAG, check_text};
use super::{Result, bad_input};
use crate::domain::*;

const MAX_TAGS: usize = 16;

/// The ratings of a submission, and the set that it judges.
pub struct SubmittedRatings<'a> {
    pub outcome: Outcome,
    /// As the labeler was shown it; `None` where they name none.
    pub rubric_version: Option<&'a str>,
    pub ratings: Vec<Rating>,
    pub rationale: Option<&'a str>,
    pub set: &'a ComparisonSet,
    /// The labeler was given the set with the active rubric, so what it requires must be there.
    pub is_leased: bool,
}

/// The version and the ratings as they are stored. `rubric` is the one of the named version, or the active one where
/// none is named. In a ranking, flags that are not required and not set become no.
///
/// # Errors
/// `BadInput` naming the field: an unknown version, completion or dimension, a value that does not fit, a required
/// rating that is missing.
pub fn checked(given: SubmittedRatings<'_>, rubric: Option<&Rubric>) -> Result<(Option<String>, Vec<Rating>)> {
    let ranks = given.outcome == Outcome::Ranked;
    let Some(rubric) = rubric else {
        return match given.rubric_version {
            Some(version) => Err(bad_input("rubric_version", format!("no rubric has the version {version:?}"))),
            None if given.ratings.is_empty() => Ok((None, Vec::new())),
            None => Err(bad_input("ratings", "no rubric is active, so there are no dimensions to rate")),
        };
    };
    let (version, definition) = (&rubric.version, &rubric.definition);
    if given.rubric_version.is_none() && given.ratings.is_empty() {
        let wants = definition.rationale == RationaleUse::Required || definition.dimensions.iter().any(|d| d.required);
        if given.is_leased && ranks && wants {
            let name = &definition.name;
            return Err(bad_input(
                "rubric_version",
                format!("is missing; the rubric {name:?} is active: send its version, {version}, and the ratings"),
            ));
        }
        return Ok((None, Vec::new()));
    }
    if !ranks && given.outcome != Outcome::AllBad && !given.ratings.is_empty() {
        return Err(bad_input(
            "ratings",
            format!("are of rankings and of sets that are all bad, not of {}", given.outcome),
        ));
    }
    let mut ratings = given.ratings;
    check_values(&mut ratings, definition, &given.set.completion_ids)?;
    if ranks {
        complete(&mut ratings, definition, &given.set.completion_ids)?;
        if definition.rationale == RationaleUse::Required && given.rationale.is_none_or(|text| text.trim().is_empty()) {
            return Err(bad_input("rationale", "is missing; the rubric requires it"));
        }
    }
    ratings.sort_by(|a, b| (&a.completion_id, &a.dimension).cmp(&(&b.completion_id, &b.dimension)));
    Ok((Some(version.clone()), ratings))
}

/// Every rating is of a completion of the set and a dimension of the rubric, once, and its value fits.
///
/// # Errors
/// `BadInput` naming the field.
pub fn check_values(ratings: &mut [Rating], definition: &RubricDefinition, of_set: &[CompletionId]) -> Result<()> {
    let mut seen = HashSet::new();
    for (i, rating) in ratings.iter_mut().enumerate() {
        let field = |name: &str| format!("ratings[{i}].{name}");
        if !of_set.contains(&rating.completion_id) {
            return Err(bad_input(field("completion_id"), format!("{} is not in this set", rating.completion_id)));
        }
        let Some(dimension) = definition.dimensions.iter().find(|d| d.key == rating.dimension) else {
            let known: Vec<_> = definition.dimensions.iter().map(|d| d.key.as_str()).collect();
            let named = &rating.dimension;
            return Err(bad_input(field("dimension"), format!("is {named:?}; the rubric has {}", known.join(", "))));
        };
        if !seen.insert((rating.completion_id.clone(), rating.dimension.clone())) {
            return Err(bad_input(field("dimension"), "this completion is rated twice on it"));
        }
        check_value(&field("value"), &mut rating.value, dimension)?;
    }
    Ok(())
}

fn check_value(field: &str, value: &mut RatingValue, dimension: &Dimension) -> Result<()> {
    match (dimension.kind, value) {
        (DimensionKind::Likert, RatingValue::Likert(n)) => {
            let points = dimension.points.unwrap_or(0);
            if !(1..=points).contains(n) {
                return Err(bad_input(field, format!("is {n}; {} is rated from 1 to {points}", dimension.key)));
            }
        }
        (DimensionKind::Flag, RatingValue::Flag(_)) => {}
        (DimensionKind::Tags, RatingValue::Tags(tags)) => {
            if !(1..=MAX_TAGS).contains(&tags.len()) {
                return Err(bad_input(field, format!("has {} tags; must be 1 to {MAX_TAGS}", tags.len())));
            }
            for (i, tag) in tags.iter().enumerate() {
                check_text(&format!("{field}[{i}]"), tag, MAX_TAG)?;
            }
            let mut seen = HashSet::new();
            tags.retain(|tag| seen.insert(tag.clone()));
        }
        (kind, value) => {
            let wanted = match kind {
                DimensionKind::Likert => "a whole number",
                DimensionKind::Flag => "true or false",
                DimensionKind::Tags => "a list of tags",
            };
            let found = value.kind();
            return Err(bad_input(field, format!("must be {wanted} for {}, and is a value of {found}", dimension.key)));
        }
    }
    Ok(())
}

/// Adds no for flags that are not set, and finds what is required and missing.
fn complete(ratings: &mut Vec<Rating>, definition: &RubricDefinition, of_set: &[CompletionId]) -> Result<()> {
    for completion_id in of_set {
        for dimension in &definition.dimensions {
            let is_rated = |r: &Rating| r.completion_id == *completion_id && r.dimension == dimension.key;
            if ratings.iter().any(is_rated) {
                continue;
            }
            if dimension.required {
                let key = &dimension.key;
                return Err(bad_input(
                    "ratings",
                    format!("completion {completion_id} is not rated on {key}, which the rubric requires"),
                ));
            }
            if dimension.kind == DimensionKind::Flag {
                let (completion_id, dimension) = (completion_id.clone(), dimension.key.clone());
                ratings.push(Rating { completion_id, dimension, value: RatingValue::Flag(false) });
            }
        }
    }
    Ok(())
}
