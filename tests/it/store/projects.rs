//! Labeling projects: their prompts, sets, queues, guidelines and rubrics, and who labels in them.

use std::collections::BTreeMap;
use std::sync::Arc;

use instructd::domain::*;
use instructd::store::*;

use super::conformance::{conformance, is_conflict, is_not_found};
use super::fixture::*;

conformance!(
    projects_have_unique_names_and_members,
    people_label_where_they_are_members,
    a_queue_has_the_sets_of_its_project,
    leases_at_once_stay_in_their_projects,
    filters_find_one_project,
    guidelines_and_rubrics_are_those_of_the_project,
    figures_are_read_for_one_project,
);

fn project(name: &str) -> Project {
    Project { id: format!("id of {name}").as_str().into(), name: name.into(), created: T0, archived: None }
}

async fn stored(store: &Store, name: &str) -> ProjectId {
    store.projects().put(project(name)).await.unwrap();
    project(name).id
}

fn member(labeler: &LabelerId, daily_quota: Option<i64>) -> ProjectMember {
    ProjectMember { labeler_id: labeler.clone(), daily_quota, created: T0 }
}

/// A stored set of two completions in a project.
async fn set_in(store: &Store, project: &ProjectId, text: &str) -> ComparisonSet {
    let asked = Prompt { project_id: project.clone(), ..prompt(text) };
    let asked = store.prompts().put(asked).await.unwrap();
    assert_eq!(asked.project_id, *project);
    let completions: Vec<_> = ["a", "b"].iter().map(|t| completion(&asked.id, t)).collect();
    store.completions().put(completions.clone()).await.unwrap();
    let set = comparison_set(&asked.id, &completions, 1);
    store.sets().put(set.clone()).await.unwrap();
    set
}

fn lease_in(project: &ProjectId, labeler: &LabelerId) -> LeaseRequest {
    LeaseRequest { project_id: project.clone(), ..lease(labeler, T0) }
}

async fn projects_have_unique_names_and_members(store: Arc<Store>) {
    let all = store.projects().list().await.unwrap();
    assert_eq!(all.iter().map(|p| (p.id.as_str(), p.name.as_str())).collect::<Vec<_>>(), [("default", "default")]);
    let id = stored(&store, "safety").await;
    is_conflict(store.projects().put(Project { id: "other".into(), ..project("safety") }).await);
    is_conflict(store.projects().change(Project { id: id.clone(), ..project("default") }).await);
    is_not_found(store.projects().change(project("unknown")).await);
    let renamed = Project { name: "harm".into(), archived: Some(T0 + 5), ..project("safety") };
    store.projects().change(renamed.clone()).await.unwrap();
    assert_eq!(store.projects().list().await.unwrap()[1..], [renamed]);

    let (ada, bob) = (labeler(&store, "ada").await, labeler(&store, "bob").await);
    store.projects().put_member(&id, member(&ada, Some(3))).await.unwrap();
    store.projects().put_member(&id, member(&bob, None)).await.unwrap();
    let later = ProjectMember { created: T0 + 9, ..member(&ada, Some(0)) };
    store.projects().put_member(&id, later).await.unwrap();
    assert_eq!(store.projects().members(&id).await.unwrap(), [member(&ada, Some(0)), member(&bob, None)]);
    is_not_found(store.projects().put_member(&"no".into(), member(&ada, None)).await);
    is_not_found(store.projects().put_member(&id, member(&"nobody".into(), None)).await);
    store.projects().remove_member(&id, &ada).await.unwrap();
    is_not_found(store.projects().remove_member(&id, &ada).await);
    assert_eq!(store.projects().members(&id).await.unwrap(), [member(&bob, None)]);

    let set = set_in(&store, &id, "q").await;
    assert_eq!(store.projects().of_set(&set.id).await.unwrap(), id);
    is_not_found(store.projects().of_set(&"none".into()).await);
    let counts = store.projects().counts(None).await.unwrap();
    let of_harm = ProjectCounts { prompts: 1, sets_open: 1, members: 1, ..ProjectCounts::default() };
    assert_eq!(counts, [(ProjectId::first(), ProjectCounts::default()), (id, of_harm)]);
}

async fn people_label_where_they_are_members(store: Arc<Store>) {
    let (one, two) = (stored(&store, "one").await, stored(&store, "two").await);
    let ada = labeler(&store, "ada").await;
    let rita = Labeler::new("rita".into(), "Rita".into(), Role::Reviewer, T0);
    store.people().put(rita.clone()).await.unwrap();
    let names = async |labeler: &LabelerId| -> Vec<String> {
        let found = store.projects().of_labeler(labeler, T0, T0 - 10).await.unwrap();
        found.into_iter().map(|p| p.project.name).collect()
    };
    assert_eq!(names(&ada).await, ["default"], "a labeler without memberships");
    assert_eq!(names(&rita.id).await, ["default", "one", "two"], "reviewers label everywhere");
    for id in [&one, &two] {
        store.projects().put_member(id, member(&ada, Some(2))).await.unwrap();
    }
    assert_eq!(names(&ada).await, ["one", "two"]);
    store.projects().change(Project { archived: Some(T0), ..project("one") }).await.unwrap();
    assert_eq!(names(&ada).await, ["two"]);
    assert_eq!(names(&rita.id).await, ["default", "two"]);

    // What is judged and held in another project is told apart.
    for text in ["judged", "held"] {
        let set = set_in(&store, &one, text).await;
        let held = store.leases().next(lease_in(&one, &ada)).await.unwrap().unwrap();
        assert_eq!(held.set_id, set.id);
        if text == "judged" {
            store.judgments().submit(submit(judgment(&set, &ada, Some(&held), "k"), Some(&held), T0)).await.unwrap();
        }
    }
    let found = store.projects().of_labeler(&ada, T0, T0 - 10).await.unwrap();
    assert_eq!(found[0].quota, Some(ProjectQuota { daily: 2, judged_elsewhere: 1 }));
    assert_eq!(found[0].held_elsewhere, 1);
    let set = set_in(&store, &two, "q").await;
    let place = Place::Set(set.id, None);
    let question = store.judgments().question(&place, &ada, None, None, None, T0 - 10).await.unwrap();
    assert_eq!(question.project_quota, found[0].quota);
    let question = store.judgments().question(&place, &rita.id, None, None, None, T0 - 10).await.unwrap();
    assert_eq!(question.project_quota, None);
}

async fn a_queue_has_the_sets_of_its_project(store: Arc<Store>) {
    let (first, other) = (ProjectId::first(), stored(&store, "other").await);
    let ada = labeler(&store, "ada").await;
    let ours = set_in(&store, &other, "ours").await;
    let open =
        async |project: &ProjectId| store.leases().open_for(&ada, project, SetKind::Normal, T0, 9).await.unwrap();
    assert_eq!((open(&first).await, open(&other).await), (0, 1));
    assert_eq!(store.leases().next(lease_in(&first, &ada)).await.unwrap(), None);
    let named = LeaseRequest { set_id: Some(ours.id.clone()), ..lease_in(&first, &ada) };
    assert_eq!(store.leases().next(named).await.unwrap(), None, "a named set is handed out from its own project");
    let held = store.leases().next(lease_in(&other, &ada)).await.unwrap().unwrap();
    assert_eq!(held.set_id, ours.id);
    assert_eq!(store.leases().held(&ada, &other, SetKind::Normal, T0).await.unwrap(), 1);
    assert_eq!(store.leases().held(&ada, &first, SetKind::Normal, T0).await.unwrap(), 0);
    // A new page in another project does not get the set that is held here.
    let resumed = |project: &ProjectId| LeaseRequest { resume: Some(vec![]), ..lease_in(project, &ada) };
    assert_eq!(store.leases().next(resumed(&first)).await.unwrap(), None);
    assert_eq!(store.leases().next(resumed(&other)).await.unwrap().map(|a| a.id), Some(held.id));

    let content = store.sets().content(&ours.id).await.unwrap();
    assert_eq!(content.prompt.project_id, other);
}

async fn leases_at_once_stay_in_their_projects(store: Arc<Store>) {
    let projects = [ProjectId::first(), stored(&store, "two").await, stored(&store, "three").await];
    for (n, project) in projects.iter().enumerate() {
        for i in 0..4 {
            set_in(&store, project, &format!("{n} {i}")).await;
        }
    }
    let mut leases = tokio::task::JoinSet::new();
    for i in 0..12 {
        let person = labeler(&store, &format!("p{i}")).await;
        let (store, project) = (store.clone(), projects[i % 3].clone());
        leases.spawn(async move {
            let held = store.leases().next(lease_in(&project, &person)).await.unwrap().expect("a set for each");
            (project, store.projects().of_set(&held.set_id).await.unwrap(), held.set_id)
        });
    }
    let taken = leases.join_all().await;
    assert!(taken.iter().all(|(asked, got, _)| asked == got), "{taken:?}");
    let different: std::collections::HashSet<_> = taken.iter().map(|(.., set)| set).collect();
    assert_eq!(different.len(), 12);
}

async fn filters_find_one_project(store: Arc<Store>) {
    let other = stored(&store, "other").await;
    let ada = labeler(&store, "ada").await;
    let mut sets = Vec::new();
    for (i, project) in [ProjectId::first(), other.clone()].iter().enumerate() {
        let set = set_in(&store, project, &format!("q{i}")).await;
        let given = judgment(&set, &ada, None, &format!("k{i}"));
        store.judgments().submit(submit(given, None, T0)).await.unwrap();
        sets.push(set);
    }
    let project = Some(other);
    let ranked = store.judgments().ranked(&RankedFilter { project: project.clone(), ..Default::default() }).await;
    assert_eq!(ranked.unwrap().into_iter().map(|r| r.set_id).collect::<Vec<_>>(), [sets[1].id.clone()]);
    let filter = PromptFilter { project: project.clone(), with_sets: true, ..Default::default() };
    let found = store.prompts().select(&filter, None, 9).await.unwrap();
    assert_eq!(found.into_iter().map(|p| p.id).collect::<Vec<_>>(), [sets[1].prompt_id.clone()]);
    assert_eq!(store.prompts().count(&filter).await.unwrap().found, 1);
    let page = Page { after: None, limit: 9 };
    let filter = SetFilter { project, ..SetFilter::default() };
    let (rows, total) = store.sets().browse(&filter, page, T0).await.unwrap();
    assert_eq!((rows.into_iter().map(|r| r.set.id).collect::<Vec<_>>(), total), (vec![sets[1].id.clone()], 1));
}

async fn guidelines_and_rubrics_are_those_of_the_project(store: Arc<Store>) {
    let (first, other) = (ProjectId::first(), stored(&store, "other").await);
    let ada = labeler(&store, "ada").await;
    let set = set_in(&store, &other, "q").await;
    let admin: LabelerId = "admin".into();
    for (id, name) in [("v1", "one"), ("v2", "two")] {
        let likert = Dimension {
            key: "helpful".into(),
            label: BTreeMap::from([("en".into(), "Helpful".into())]),
            kind: DimensionKind::Flag,
            required: false,
            points: None,
            low: BTreeMap::new(),
            high: BTreeMap::new(),
            suggestions: vec![],
        };
        let definition =
            RubricDefinition { name: name.into(), dimensions: vec![likert], rationale: RationaleUse::Optional };
        let rubric = Rubric { version: id.into(), definition };
        store.rubrics().put(RubricVersion { rubric, created: T0, created_by: admin.clone() }).await.unwrap();
    }
    let guide = |id: &str, project: &ProjectId, text: &str| GuidelineVersion {
        id: id.into(),
        project_id: project.clone(),
        lang: "en".into(),
        text: text.into(),
        created: T0,
        created_by: admin.clone(),
    };
    // (guidelines, version of the rubric) as read for a turn, and for a judgment of the project's set.
    let read = async || {
        let ask = OutlookRequest {
            labeler_id: ada.clone(),
            project_id: other.clone(),
            now: T0,
            since: T0,
            set_id: None,
            special: None,
            again: false,
            most_open: 1,
            most_calibrations: 0,
            lang: Some("en".into()),
            expires_at: T0 + LEASE,
        };
        let seen = store.leases().outlook(&ask).await.unwrap();
        let place = Place::Set(set.id.clone(), None);
        let question = store.judgments().question(&place, &ada, None, Some("en"), None, T0).await.unwrap();
        let version = |rubric: &Option<Rubric>| rubric.as_ref().map(|r| r.version.clone());
        let active = store.rubrics().active(&other).await.unwrap();
        assert_eq!((&seen.guidelines, version(&seen.rubric)), (&question.guidelines, version(&question.rubric)));
        assert_eq!(version(&seen.rubric), version(&active));
        (seen.guidelines.clone(), version(&seen.rubric))
    };
    let (text, of) = (|t: &str| Some(t.to_owned()), |v: &str| Some(v.to_owned()));
    assert_eq!(read().await, (None, None));
    store.guidelines().put(guide("1", &first, "of all")).await.unwrap();
    store.rubrics().activate(&first, Some("v1"), &admin, T0).await.unwrap();
    assert_eq!(read().await, (text("of all"), of("v1")), "those of the first project");
    store.guidelines().put(guide("2", &other, "own")).await.unwrap();
    store.rubrics().activate(&other, Some("v2"), &admin, T0).await.unwrap();
    store.rubrics().activate(&first, None, &admin, T0 + 1).await.unwrap();
    assert_eq!(read().await, (text("own"), of("v2")));
    store.guidelines().put(guide("3", &other, "")).await.unwrap();
    store.rubrics().activate(&other, None, &admin, T0 + 2).await.unwrap();
    store.rubrics().activate(&first, Some("v1"), &admin, T0 + 3).await.unwrap();
    assert_eq!(read().await, (text("of all"), None), "an empty text falls back; no rubric is a choice");
    assert_eq!(store.guidelines().latest(&other, "en").await.unwrap().map(|g| g.id), Some("3".into()));
}

async fn figures_are_read_for_one_project(store: Arc<Store>) {
    let (first, other) = (ProjectId::first(), stored(&store, "other").await);
    let ada = labeler(&store, "ada").await;
    let (ours, theirs) = (set_in(&store, &first, "ours").await, set_in(&store, &other, "theirs").await);
    set_in(&store, &other, "unjudged").await;
    for (set, active_ms) in [(&ours, 100), (&theirs, 300)] {
        let held = lease_in(if set.id == ours.id { &first } else { &other }, &ada);
        let held = store.leases().next(LeaseRequest { set_id: Some(set.id.clone()), ..held }).await.unwrap().unwrap();
        let given = Judgment { active_ms, ..judgment(set, &ada, Some(&held), set.id.as_str()) };
        store.judgments().submit(submit(given, Some(&held), T0)).await.unwrap();
    }
    for (project, set, active_ms, open) in [(&first, &ours, 100, 0), (&other, &theirs, 300, 1)] {
        let filter = JudgedFilter { project: Some(project.clone()), ..JudgedFilter::default() };
        let mut judged = Vec::new();
        store.sets().each_judged(&filter, |judgment| judged.push(judgment.set_id)).await.unwrap();
        assert_eq!(judged, std::slice::from_ref(&set.id));
        let throughput = store.judgments().throughput(0, Some(project)).await.unwrap();
        assert_eq!(throughput.days.iter().map(|day| day.judgments).sum::<i64>(), 1);
        assert_eq!(throughput.median_active_ms, Some(active_ms));
        assert_eq!(store.leases().queue(T0, Some(project)).await.unwrap().sets_open, open);
        let counts = store.projects().counts(Some(project)).await.unwrap();
        assert_eq!(
            counts.iter().map(|(id, c)| (id, c.judgments, c.sets_open)).collect::<Vec<_>>(),
            [(project, 1, open)]
        );
    }
    // A lease is in the queue of its project.
    store.leases().next(lease_in(&other, &ada)).await.unwrap().unwrap();
    let leases = async |project| store.leases().queue(T0, project).await.unwrap().leases;
    assert_eq!((leases(Some(&first)).await, leases(Some(&other)).await, leases(None).await), (0, 1, 1));
    let all = store.judgments().throughput(0, None).await.unwrap();
    assert_eq!(all.days.iter().map(|day| day.judgments).sum::<i64>(), 2);
}
