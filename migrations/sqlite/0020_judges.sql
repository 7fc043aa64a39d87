-- Language models as labelers: their rankings of sets, apart from people's judgments. Keep in step with
-- migrations/postgres.

-- A model has no key, no session and no link, and is never active.
ALTER TABLE labelers ADD COLUMN kind TEXT NOT NULL DEFAULT 'human' CHECK (kind IN ('human', 'model'));

-- What models were told about good answers. The id is a hash of the text.
CREATE TABLE judge_criteria (
    id TEXT PRIMARY KEY,
    text TEXT NOT NULL
) STRICT;

CREATE TABLE model_judgments (
    id TEXT PRIMARY KEY,
    set_id TEXT NOT NULL REFERENCES comparison_sets (id),
    labeler_id TEXT NOT NULL REFERENCES labelers (id),
    -- The last one is the model's current ranking of the set.
    revision INTEGER NOT NULL CHECK (revision >= 1),
    criteria_id TEXT NOT NULL REFERENCES judge_criteria (id),
    -- 0 to 1.
    doubt REAL NOT NULL,
    created INTEGER NOT NULL,
    UNIQUE (set_id, labeler_id, revision),
    UNIQUE (set_id, labeler_id, criteria_id)
) STRICT;
CREATE INDEX model_judgments_by_labeler ON model_judgments (labeler_id, id);

CREATE TABLE model_judgment_items (
    judgment_id TEXT NOT NULL REFERENCES model_judgments (id),
    completion_id TEXT NOT NULL REFERENCES completions (id),
    tier INTEGER NOT NULL CHECK (tier >= 0),
    PRIMARY KEY (judgment_id, completion_id)
) STRICT;
