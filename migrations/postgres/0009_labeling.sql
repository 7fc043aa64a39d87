-- Labeling: what was known when judging, when a lease last gave a sign of life, who made a set, versions of
-- the guidelines. Keep in step with migrations/sqlite.

-- What the labeler had been shown of this set before the judgment.
ALTER TABLE judgments ADD COLUMN knowledge TEXT NOT NULL DEFAULT 'blind'
    CHECK (knowledge IN ('blind', 'authors', 'answer'));

-- What a labeler has been shown of a set: who wrote the completions, or the expected answer.
CREATE TABLE reveals (
    set_id TEXT COLLATE "C" NOT NULL REFERENCES comparison_sets (id),
    labeler_id TEXT COLLATE "C" NOT NULL REFERENCES labelers (id),
    what TEXT NOT NULL CHECK (what IN ('authors', 'answer')),
    created BIGINT NOT NULL,
    PRIMARY KEY (set_id, labeler_id, what)
);

-- Until now the authors were shown after every judgment, and the expected answer after those of
-- calibration sets: every revision was made with that knowledge.
INSERT INTO reveals (set_id, labeler_id, what, created)
    SELECT set_id, labeler_id, 'authors', MIN(created) FROM judgments
    WHERE labeler_id <> 'import' GROUP BY set_id, labeler_id;
INSERT INTO reveals (set_id, labeler_id, what, created)
    SELECT j.set_id, j.labeler_id, 'answer', MIN(j.created) FROM judgments j
    JOIN comparison_sets s ON s.id = j.set_id
    WHERE j.labeler_id <> 'import' AND s.kind = 'calibration' GROUP BY j.set_id, j.labeler_id;
UPDATE judgments SET knowledge = 'authors' WHERE supersedes_id IS NOT NULL;
UPDATE judgments SET knowledge = 'answer' WHERE supersedes_id IS NOT NULL
    AND set_id IN (SELECT id FROM comparison_sets WHERE kind = 'calibration');

-- µs UTC: when the lease was first given, and when its holder last gave a sign of life.
ALTER TABLE assignments ADD COLUMN leased BIGINT NOT NULL DEFAULT 0;
ALTER TABLE assignments ADD COLUMN renewed BIGINT NOT NULL DEFAULT 0;

-- The labeler whose request made the set; NULL for draws and imports.
ALTER TABLE comparison_sets ADD COLUMN made_by TEXT COLLATE "C" REFERENCES labelers (id);
CREATE INDEX comparison_sets_by_maker ON comparison_sets (made_by);
CREATE INDEX set_items_by_completion ON set_items (completion_id);

-- The last row of a language holds its guidelines; an empty text returns to the configured file.
CREATE TABLE guideline_versions (
    id TEXT COLLATE "C" PRIMARY KEY,
    lang TEXT NOT NULL,
    text TEXT NOT NULL,
    created BIGINT NOT NULL,
    created_by TEXT COLLATE "C" NOT NULL REFERENCES labelers (id)
);
CREATE INDEX guideline_versions_by_lang ON guideline_versions (lang, id);
