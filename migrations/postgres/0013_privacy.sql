-- Privacy: which texts came in as requests and which were submitted for labeling, who was erased, where backups lie,
-- and indexes by which retention finds what other rows rest on. Keep in step with migrations/sqlite.

-- When a prompt that was known from a request was also submitted on purpose (for labeling, by import).
ALTER TABLE prompts ADD COLUMN submitted BIGINT;

-- Who submitted a prompt: they may name it, it is in the export of their data, and it goes with them.
CREATE TABLE prompt_submissions (
    prompt_id TEXT COLLATE "C" NOT NULL REFERENCES prompts (id),
    labeler_id TEXT COLLATE "C" NOT NULL REFERENCES labelers (id),
    created BIGINT NOT NULL,
    PRIMARY KEY (prompt_id, labeler_id)
);
CREATE INDEX prompt_submissions_by_labeler ON prompt_submissions (labeler_id);

-- The route that the completion answered ('chat', 'completions'); NULL for all that was not written for a request.
ALTER TABLE completions ADD COLUMN served TEXT;
UPDATE completions SET served = (SELECT p.source FROM prompts p WHERE p.id = completions.prompt_id)
    WHERE origin = 'model' AND (request_id IS NULL OR request_id NOT LIKE 'draw-%')
      AND prompt_id IN (SELECT p.id FROM prompts p WHERE p.source IN ('chat', 'completions'));

-- Whose data was erased, and how: backups carry the list, and a restore applies it.
CREATE TABLE erasures (
    labeler_id TEXT COLLATE "C" PRIMARY KEY REFERENCES labelers (id),
    judgments TEXT NOT NULL CHECK (judgments IN ('anonymise', 'remove')),
    created BIGINT NOT NULL
);
INSERT INTO erasures (labeler_id, judgments, created)
    SELECT l.id, CASE WHEN EXISTS (SELECT 1 FROM judgments j WHERE j.labeler_id = l.id) THEN 'anonymise' ELSE 'remove' END,
           l.erased
    FROM labelers l WHERE l.erased IS NOT NULL;

-- Directories that `instructd backup` wrote: an erasure puts its line into their manifests.
CREATE TABLE backups (
    path TEXT COLLATE "C" PRIMARY KEY,
    created BIGINT NOT NULL
);

CREATE INDEX completions_served ON completions (created) WHERE served IS NOT NULL;
CREATE INDEX completions_by_parent ON completions (parent_completion_id) WHERE parent_completion_id IS NOT NULL;
CREATE INDEX feedback_events_by_time ON feedback_events (created);
CREATE INDEX judgment_items_by_completion ON judgment_items (completion_id);
CREATE INDEX judgment_flags_by_completion ON judgment_flags (completion_id) WHERE completion_id IS NOT NULL;
CREATE INDEX demonstrations_by_completion ON demonstrations (completion_id);
