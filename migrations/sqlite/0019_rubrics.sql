-- Rubrics: versioned dimensions on which labelers rate completions, and the ratings of each judgment. Keep in step with
-- migrations/postgres.

-- A definition never changes; its version is a hash of it.
CREATE TABLE rubrics (
    version TEXT PRIMARY KEY,
    -- As in the API: name, dimensions, rationale.
    definition TEXT NOT NULL,
    created INTEGER NOT NULL,
    created_by TEXT NOT NULL REFERENCES labelers (id)
) STRICT;

-- The latest row names the active rubric; NULL for none.
CREATE TABLE rubric_activations (
    id TEXT PRIMARY KEY,
    version TEXT REFERENCES rubrics (version),
    created INTEGER NOT NULL,
    created_by TEXT NOT NULL REFERENCES labelers (id)
) STRICT;
CREATE INDEX rubric_activations_by_time ON rubric_activations (created, id);

-- Of the rubric that the judgment's ratings are by.
ALTER TABLE judgments ADD COLUMN rubric_version TEXT REFERENCES rubrics (version);

CREATE TABLE judgment_ratings (
    judgment_id TEXT NOT NULL REFERENCES judgments (id),
    completion_id TEXT NOT NULL REFERENCES completions (id),
    -- Key of a dimension of the judgment's rubric.
    dimension TEXT NOT NULL,
    -- JSON: a number, true or false, or a list of texts.
    value TEXT NOT NULL,
    PRIMARY KEY (judgment_id, completion_id, dimension)
) STRICT;
CREATE INDEX judgment_ratings_by_completion ON judgment_ratings (completion_id);
