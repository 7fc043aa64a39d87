-- Labeling projects: each has its own prompts, sets, guidelines, active rubric and people. Keep in step with
-- migrations/sqlite.
CREATE TABLE projects (
    id TEXT PRIMARY KEY,
    name TEXT NOT NULL UNIQUE,
    created BIGINT NOT NULL,
    -- Since when nothing is handed out from it; NULL for a project in use.
    archived BIGINT
);

-- What was stored before there were projects belongs to the first. It cannot be archived.
INSERT INTO projects (id, name, created, archived) VALUES ('default', 'default', 0, NULL);

-- Who labels in a project. Labelers without a row label in the first project.
CREATE TABLE project_members (
    project_id TEXT NOT NULL REFERENCES projects (id),
    labeler_id TEXT NOT NULL REFERENCES labelers (id),
    -- Judgments a day in this project; NULL = the person's own quota, 0 = no limit.
    daily_quota BIGINT,
    created BIGINT NOT NULL,
    PRIMARY KEY (project_id, labeler_id)
);
CREATE INDEX project_members_by_labeler ON project_members (labeler_id, project_id);

-- Projects are never deleted. SQLite cannot add a column that refers to another table and is not NULL.
ALTER TABLE prompts ADD COLUMN project_id TEXT NOT NULL DEFAULT 'default';
CREATE INDEX prompts_by_project ON prompts (project_id, id);
-- That of the set's prompt.
ALTER TABLE comparison_sets ADD COLUMN project_id TEXT NOT NULL DEFAULT 'default';
ALTER TABLE guideline_versions ADD COLUMN project_id TEXT NOT NULL DEFAULT 'default';
ALTER TABLE rubric_activations ADD COLUMN project_id TEXT NOT NULL DEFAULT 'default';

-- The order in which a project's open sets of a kind are handed out; and its sets with known answers.
DROP INDEX comparison_sets_queue;
CREATE INDEX comparison_sets_queue ON comparison_sets (project_id, kind, status, selection_score DESC NULLS LAST, id);
DROP INDEX guideline_versions_by_lang;
CREATE INDEX guideline_versions_by_lang ON guideline_versions (project_id, lang, id);
DROP INDEX rubric_activations_by_time;
CREATE INDEX rubric_activations_by_time ON rubric_activations (project_id, created, id);
