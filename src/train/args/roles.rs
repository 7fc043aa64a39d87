//! The roles of arguments, for jobs, forms, the command line and resumed runs. An argument that is not listed is a
//! plain value.

use serde_json::{Map, Value};

use crate::domain::ModelKind;

/// The role of an argument.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    /// The directory of a model of this kind. Jobs and the command line take a version instead.
    Model(ModelKind),
    /// A directory or a switch that the caller of a run sets. A job sets it itself.
    Run,
    /// A JSONL file that a job, or the command line, writes from the database.
    Data(Needed),
    /// Files of the operator. For a job, names in the directory `corpora` of the data directory.
    Corpus,
    /// A setting that does not change the result. A resumed run may have another value.
    Manner,
}

/// When a recipe that takes a file of data needs it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Needed {
    Always,
    /// Unless this other argument is given.
    Without(&'static str),
    /// If this number is above 0.
    Positive(&'static str),
    /// If this argument has this value.
    Equal(&'static str, &'static str),
    /// If the job's argument of this name is true.
    Asked(&'static str),
}

use Needed::{Always, Asked, Equal, Positive, Without};
use Role::{Corpus, Data, Manner, Model, Run};

/// Every argument with a role.
pub const ROLES: &[(&str, Role)] = &[
    ("model", Model(ModelKind::Policy)),
    ("reward_model", Model(ModelKind::Reward)),
    ("gold_reward_model", Model(ModelKind::Reward)),
    ("judge_model", Model(ModelKind::Policy)),
    ("output_dir", Run),
    ("checkpoint_dir", Run),
    ("log_dir", Run),
    ("resume", Run),
    ("comparisons", Data(Always)),
    ("demonstrations", Data(Without("mixture"))),
    ("feedback", Data(Always)),
    ("prompts", Data(Always)),
    ("sets", Data(Always)),
    ("ptx_demonstrations", Data(Positive("ptx_coef"))),
    ("reference_demonstrations", Data(Equal("normalize_on", "demonstrations"))),
    ("gold_comparisons", Data(Asked("gold_judgments"))),
    ("texts", Corpus),
    ("pretrain_texts", Corpus),
    ("labelled", Corpus),
    ("mixture", Corpus),
    ("tokenizer", Corpus),
    ("max_steps", Manner),
    ("recompute", Manner),
    ("checkpoint_every", Manner),
    ("eval_every", Manner),
    ("device", Manner),
    ("sample_prompts", Manner),
];

/// The role of an argument, if it has one.
pub fn of(name: &str) -> Option<Role> {
    ROLES.iter().find(|(known, _)| *known == name).map(|(_, role)| *role)
}

/// Arguments that stand for models, with the kind of each.
pub fn models() -> impl Iterator<Item = (&'static str, ModelKind)> {
    ROLES.iter().filter_map(|(name, role)| match role {
        Model(kind) => Some((*name, *kind)),
        _ => None,
    })
}

/// Files of data, with the condition under which a recipe that takes one needs it.
pub fn data() -> impl Iterator<Item = (&'static str, Needed)> {
    ROLES.iter().filter_map(|(name, role)| match role {
        Data(needed) => Some((*name, *needed)),
        _ => None,
    })
}

/// Files of the operator.
pub fn corpora() -> impl Iterator<Item = &'static str> {
    ROLES.iter().filter(|(_, role)| *role == Corpus).map(|(name, _)| *name)
}

/// Whether a job sets this argument itself, so that a caller must not.
pub fn is_set_by_job(name: &str) -> bool {
    matches!(of(name), Some(Run | Data(_)))
}

/// Whether a resumed run may have another value than the run whose checkpoint it continues: paths, whose contents are
/// compared instead, and what changes no result.
pub fn is_free_on_resume(name: &str) -> bool {
    of(name).is_some()
}

impl Needed {
    /// Whether arguments need the file. `asked` says whether the job's argument of a name is true.
    pub fn by(self, args: &Map<String, Value>, asked: impl Fn(&str) -> bool) -> bool {
        match self {
            Always => true,
            Without(other) => args.get(other).is_none_or(Value::is_null),
            Positive(field) => args.get(field).and_then(Value::as_f64).is_some_and(|number| number > 0.0),
            Equal(field, value) => args.get(field).is_some_and(|v| v == value),
            Asked(field) => asked(field),
        }
    }

    /// Whether the file is needed only when other arguments ask for it.
    pub fn is_optional(self) -> bool {
        matches!(self, Positive(_) | Equal(..) | Asked(_))
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use serde_json::json;

    use super::*;

    /// Every property of every recipe's schema.
    fn properties() -> BTreeSet<String> {
        let schemas = crate::train::job_kinds().iter().map(|kind| (kind.schema)());
        schemas
            .flat_map(|s| s["properties"].as_object().expect("properties").keys().cloned().collect::<Vec<_>>())
            .collect()
    }

    #[test]
    fn every_role_is_that_of_an_argument() {
        let (properties, names) = (properties(), ROLES.iter().map(|(name, _)| *name));
        let unknown: Vec<_> = names.filter(|name| !properties.contains(*name)).collect();
        assert!(unknown.is_empty(), "no recipe takes {unknown:?}");
        assert_eq!(ROLES.iter().map(|(name, _)| name).collect::<BTreeSet<_>>().len(), ROLES.len(), "one role each");
        for (name, needed) in data() {
            if let Without(field) | Positive(field) | Equal(field, _) = needed {
                assert!(properties.contains(field), "{name} depends on {field}, which no recipe takes");
            }
        }
    }

    /// A text that names a file or a directory and has no role would let a job read any path of the server.
    #[test]
    fn every_text_that_may_be_a_path_has_a_role() {
        let plain = ["text_field", "label_field", "init_text", "trainer", "host", "criteria", "rubric"];
        let is_text = |schema: &Value| {
            let own =
                schema["type"] == "string" || schema["type"].as_array().is_some_and(|t| t.contains(&json!("string")));
            own && schema.get("enum").is_none()
        };
        let mut texts = 0;
        for recipe in crate::train::job_kinds() {
            let schema = (recipe.schema)();
            for (name, property) in schema["properties"].as_object().expect("properties") {
                if plain.contains(&name.as_str()) || !(is_text(property) || is_text(&property["items"])) {
                    continue;
                }
                texts += 1;
                let role = of(name);
                assert!(role.is_some_and(|r| r != Manner), "{name} of {} has the role {role:?}", recipe.name);
            }
        }
        assert!(texts > 50, "{texts} texts were found");
    }

    #[test]
    fn conditions_follow_the_arguments() {
        let args = json!({"ptx_coef": 0.5, "normalize_on": "demonstrations", "mixture": null});
        let args = args.as_object().expect("an object");
        let needed: Vec<&str> = data().filter(|(_, n)| n.by(args, |_| false)).map(|(name, _)| name).collect();
        assert_eq!(
            needed,
            [
                "comparisons",
                "demonstrations",
                "feedback",
                "prompts",
                "sets",
                "ptx_demonstrations",
                "reference_demonstrations"
            ]
        );
        let none = json!({"mixture": "tasks.json", "ptx_coef": 0});
        let none = none.as_object().expect("an object");
        let needed: Vec<&str> = data().filter(|(_, n)| n.by(none, |_| true)).map(|(name, _)| name).collect();
        assert_eq!(needed, ["comparisons", "feedback", "prompts", "sets", "gold_comparisons"]);
    }
}
