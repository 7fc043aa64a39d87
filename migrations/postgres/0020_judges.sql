-- Language models as labelers: their rankings of sets, apart from people's judgments. Keep in step with
-- migrations/sqlite.

-- A model has no key, no session and no link, and is never active.
ALTER TABLE labelers ADD COLUMN kind TEXT COLLATE "C" NOT NULL DEFAULT 'human' CHECK (kind IN ('human', 'model'));

-- What models were told about good answers. The id is a hash of the text.
CREATE TABLE judge_criteria (
    id TEXT COLLATE "C" PRIMARY KEY,
    text TEXT COLLATE "C" NOT NULL
);

CREATE TABLE model_judgments (
    id TEXT COLLATE "C" PRIMARY KEY,
    set_id TEXT COLLATE "C" NOT NULL REFERENCES comparison_sets (id),
    labeler_id TEXT COLLATE "C" NOT NULL REFERENCES labelers (id),
    -- The last one is the model's current ranking of the set.
    revision BIGINT NOT NULL CHECK (revision >= 1),
    criteria_id TEXT COLLATE "C" NOT NULL REFERENCES judge_criteria (id),
    -- 0 to 1.
    doubt DOUBLE PRECISION NOT NULL,
    created BIGINT NOT NULL,
    UNIQUE (set_id, labeler_id, revision),
    UNIQUE (set_id, labeler_id, criteria_id)
);
CREATE INDEX model_judgments_by_labeler ON model_judgments (labeler_id, id);

CREATE TABLE model_judgment_items (
    judgment_id TEXT COLLATE "C" NOT NULL REFERENCES model_judgments (id),
    completion_id TEXT COLLATE "C" NOT NULL REFERENCES completions (id),
    tier BIGINT NOT NULL CHECK (tier >= 0),
    PRIMARY KEY (judgment_id, completion_id)
);
