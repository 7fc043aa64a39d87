//! The argument `sweep`: several runs of a recipe instead of one, over a grid of arguments and several seeds.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use super::roles::{self, Role};
use super::{RecipeArgs, ensure, parse};
use crate::train::ArgsError;

/// Maximum number of runs of a sweep.
const MAX_RUNS: u64 = 64;

/// Several runs instead of one: every combination of the grid with every seed.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct SweepArgs {
    /// Arguments with the values that each of them takes, such as `{"learning_rate": [1e-5, 1e-4], "lora.rank": [4,
    /// 16]}`.
    #[serde(default)]
    pub grid: BTreeMap<String, Vec<Value>>,
    /// Number of runs per combination, with the seeds `seed`, `seed` + 1, and so on.
    #[serde(default = "three")]
    pub seeds: u64,
    /// The figure by which the best combination is chosen, such as `heldout_accuracy` or `last.reward`; null = the
    /// recipe's first held-out figure.
    #[serde(default)]
    pub by: Option<String>,
}

fn three() -> u64 {
    3
}

/// Values of arguments, by name; dots lead into objects.
pub type Cell = Map<String, Value>;

impl SweepArgs {
    /// Every combination of the grid; of an empty grid one without changes. The last argument changes first.
    pub fn cells(&self) -> Vec<Cell> {
        let mut cells = vec![Cell::new()];
        for (name, values) in &self.grid {
            let with = |cell: Cell| {
                values.iter().map(move |value| {
                    let mut cell = cell.clone();
                    cell.insert(name.clone(), value.clone());
                    cell
                })
            };
            cells = cells.into_iter().flat_map(with).collect();
        }
        cells
    }

    fn check(&self) -> Result<(), ArgsError> {
        for (name, values) in &self.grid {
            let field = format!("sweep.grid.{name}");
            let first = name.split('.').next().unwrap_or_default();
            let is_path = roles::of(first).is_some_and(|role| role != Role::Manner);
            ensure(!is_path, &field, "is a model, a file or a directory: a sweep changes plain values only")?;
            ensure(first != "sweep" && name != "seed", &field, "cannot be swept; `seeds` says how many seeds are run")?;
            ensure(!values.is_empty(), &field, "must name at least one value")?;
            let plain = |value: &Value| !value.is_object() && !value.is_array();
            ensure(values.iter().all(plain), &field, "must be a list of numbers, texts, true, false or null")?;
            let twice = values.iter().enumerate().any(|(i, value)| values[..i].contains(value));
            ensure(!twice, &field, "names a value twice")?;
        }
        let most = format!("must be 1 to {MAX_RUNS} in all combinations together");
        let combinations = self.grid.values().try_fold(1u64, |n, values| n.checked_mul(values.len() as u64));
        let runs = combinations.and_then(|n| n.checked_mul(self.seeds));
        ensure(runs.is_some_and(|runs| (1..=MAX_RUNS).contains(&runs)), "sweep.seeds", &most)
    }
}

/// The sweep of a recipe's arguments, if there is one.
///
/// # Errors
/// If it is not a valid sweep, is too large, or changes an argument that cannot be swept.
pub fn sweep_of(args: &Value) -> Result<Option<SweepArgs>, ArgsError> {
    let Some(value) = args.get("sweep").filter(|sweep| !sweep.is_null()) else { return Ok(None) };
    let sweep = SweepArgs::deserialize(value)
        .map_err(|error| ArgsError { field: "sweep".to_owned(), message: error.to_string() })?;
    sweep.check()?;
    Ok(Some(sweep))
}

/// The arguments of one run of a sweep.
///
/// # Errors
/// If a dotted name leads into a value without fields.
pub fn run_args(args: &Value, cell: &Cell, seed: u64) -> Result<Value, ArgsError> {
    let mut own = args.clone();
    own["sweep"] = Value::Null;
    own["seed"] = (args.get("seed").and_then(Value::as_u64).unwrap_or(0) + seed).into();
    for (name, value) in cell {
        let (mut at, parts) = (&mut own, name.split('.'));
        for part in parts {
            if at.is_null() {
                *at = Value::Object(Map::new());
            }
            let inside = at.as_object_mut();
            let field = || format!("sweep.grid.{name}");
            let message = "leads into a value that has no fields".to_owned();
            at = inside.ok_or_else(|| ArgsError { field: field(), message })?.entry(part).or_insert(Value::Null);
        }
        *at = value.clone();
    }
    Ok(own)
}

/// Checks a recipe's arguments, in every run of their sweep.
///
/// # Errors
/// Names the field, and for a sweep the combination.
pub fn check<T: RecipeArgs>(args: &Value) -> Result<(), ArgsError> {
    parse::<T>(args)?;
    let Some(sweep) = sweep_of(args)? else { return Ok(()) };
    for cell in sweep.cells() {
        parse::<T>(&run_args(args, &cell, 0)?).map_err(|error| {
            let message = format!("{}: {error}", Value::Object(cell.clone()));
            ArgsError { field: "sweep.grid".to_owned(), message }
        })?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::train::args::PpoArgs;

    #[test]
    fn cells_are_all_combinations() {
        let sweep =
            sweep_of(&json!({"sweep": {"grid": {"a": [1, 2], "b.c": ["x", null]}, "seeds": 2}})).unwrap().unwrap();
        let cells: Vec<Value> = sweep.cells().into_iter().map(Value::Object).collect();
        let wanted = [
            json!({"a": 1, "b.c": "x"}),
            json!({"a": 1, "b.c": null}),
            json!({"a": 2, "b.c": "x"}),
            json!({"a": 2, "b.c": null}),
        ];
        assert_eq!(cells, wanted);
        let args = json!({"seed": 7, "a": 0, "sweep": {}, "b": null});
        let run = run_args(&args, &sweep.cells()[2], 1).unwrap();
        assert_eq!(run, json!({"seed": 8, "a": 2, "sweep": null, "b": {"c": "x"}}));
        let none = sweep_of(&json!({"sweep": {}})).unwrap().unwrap();
        assert_eq!((none.cells(), none.seeds), (vec![Cell::new()], 3));
        assert_eq!(sweep_of(&json!({"sweep": null})).unwrap(), None);
        assert!(run_args(&json!({"a": 3}), &Cell::from_iter([("a.b".to_owned(), json!(1))]), 0).is_err());
    }

    #[test]
    fn errors_name_the_argument_that_cannot_be_swept() {
        let base = json!({"model": "m", "output_dir": "o", "prompts": "p", "reward_model": "r"});
        let field = |sweep: Value| {
            let mut args = base.clone();
            args["sweep"] = sweep;
            check::<PpoArgs>(&args).map_or_else(|error| error.field, |()| "accepted".to_owned())
        };
        for (sweep, wanted) in [
            (json!({"grid": {"kl_coef": [0.1, 0.2], "lora.rank": [4, 8]}}), "accepted"),
            (json!({"grid": {"output_dir": ["elsewhere"]}}), "sweep.grid.output_dir"),
            (json!({"grid": {"reward_model": ["other"]}}), "sweep.grid.reward_model"),
            (json!({"grid": {"seed": [1]}}), "sweep.grid.seed"),
            (json!({"grid": {"kl_coef": []}}), "sweep.grid.kl_coef"),
            (json!({"grid": {"kl_coef": [0.1, 0.1]}}), "sweep.grid.kl_coef"),
            (json!({"grid": {"reward": [{"kind": "length", "target": 1}]}}), "sweep.grid.reward"),
            (json!({"grid": {"kl_coef": [0.1, -1.0]}}), "sweep.grid"),
            (json!({"grid": {"kl_coeff": [0.1]}}), "sweep.grid"),
            (json!({"seeds": 65}), "sweep.seeds"),
            (json!({"seeds": 0}), "sweep.seeds"),
            (json!({"grid": {"kl_coef": [0.1, 0.2]}, "seeds": 33}), "sweep.seeds"),
            (json!({"grids": {}}), "sweep.grids"),
        ] {
            assert_eq!(field(sweep.clone()), wanted, "{sweep}");
        }
    }
}
