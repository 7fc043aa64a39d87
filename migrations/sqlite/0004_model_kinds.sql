-- Model versions may also be classifiers and prompt adapters (soft prompts).
-- SQLite cannot change a CHECK in place, so the table is made anew. Its name stays the same throughout:
-- renaming would rewrite the references of other tables. With foreign keys deferred to the end of this
-- migration's transaction, dropping the table leaves its references open and the copied rows close them.

PRAGMA defer_foreign_keys = ON;

CREATE TABLE model_versions_copy AS SELECT * FROM model_versions;
DROP TABLE model_versions;

CREATE TABLE model_versions (
    id TEXT PRIMARY KEY,
    kind TEXT NOT NULL CHECK (kind IN ('policy', 'reward', 'encoder', 'classifier', 'prompt_adapter')),
    name TEXT NOT NULL UNIQUE,
    stage TEXT NOT NULL,
    parent_id TEXT REFERENCES model_versions (id),
    job_id TEXT,
    artifact_uri TEXT NOT NULL,
    sha256 TEXT NOT NULL,
    metrics TEXT NOT NULL,
    state TEXT NOT NULL CHECK (state IN ('candidate', 'active', 'retired')),
    created INTEGER NOT NULL,
    activated INTEGER
) STRICT;
CREATE UNIQUE INDEX model_versions_one_active ON model_versions (kind) WHERE state = 'active';

INSERT INTO model_versions
    (id, kind, name, stage, parent_id, job_id, artifact_uri, sha256, metrics, state, created, activated)
SELECT id, kind, name, stage, parent_id, job_id, artifact_uri, sha256, metrics, state, created, activated
FROM model_versions_copy;
DROP TABLE model_versions_copy;
