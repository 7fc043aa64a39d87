-- Rubrics: versioned dimensions on which labelers rate completions, and the ratings of each judgment. Keep in step with
-- migrations/sqlite.

-- A definition never changes; its version is a hash of it.
CREATE TABLE rubrics (
    version TEXT COLLATE "C" PRIMARY KEY,
    -- As in the API: name, dimensions, rationale.
    definition JSONB NOT NULL,
    created BIGINT NOT NULL,
    created_by TEXT COLLATE "C" NOT NULL REFERENCES labelers (id)
);

-- The latest row names the active rubric; NULL for none.
CREATE TABLE rubric_activations (
    id TEXT COLLATE "C" PRIMARY KEY,
    version TEXT COLLATE "C" REFERENCES rubrics (version),
    created BIGINT NOT NULL,
    created_by TEXT COLLATE "C" NOT NULL REFERENCES labelers (id)
);
CREATE INDEX rubric_activations_by_time ON rubric_activations (created, id);

-- Of the rubric that the judgment's ratings are by.
ALTER TABLE judgments ADD COLUMN rubric_version TEXT COLLATE "C" REFERENCES rubrics (version);

CREATE TABLE judgment_ratings (
    judgment_id TEXT COLLATE "C" NOT NULL REFERENCES judgments (id),
    completion_id TEXT COLLATE "C" NOT NULL REFERENCES completions (id),
    -- Key of a dimension of the judgment's rubric.
    dimension TEXT COLLATE "C" NOT NULL,
    -- JSON: a number, true or false, or a list of texts.
    value JSONB NOT NULL,
    PRIMARY KEY (judgment_id, completion_id, dimension)
);
CREATE INDEX judgment_ratings_by_completion ON judgment_ratings (completion_id);
