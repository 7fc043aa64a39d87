-- Conversations: comparison sets that follow each other, and stretches of completions that labelers marked as wrong. Keep
-- in step with migrations/sqlite.

CREATE TABLE conversations (
    id TEXT COLLATE "C" PRIMARY KEY,
    labeler_id TEXT COLLATE "C" NOT NULL REFERENCES labelers (id),
    created BIGINT NOT NULL
);
CREATE INDEX conversations_by_labeler ON conversations (labeler_id, id);

CREATE TABLE conversation_turns (
    conversation_id TEXT COLLATE "C" NOT NULL REFERENCES conversations (id),
    turn BIGINT NOT NULL CHECK (turn >= 1),
    set_id TEXT COLLATE "C" NOT NULL UNIQUE REFERENCES comparison_sets (id),
    -- The completion of the turn before that this turn's prompt contains; NULL in the first turn.
    continued_id TEXT COLLATE "C" REFERENCES completions (id),
    created BIGINT NOT NULL,
    PRIMARY KEY (conversation_id, turn)
);

CREATE TABLE judgment_spans (
    judgment_id TEXT COLLATE "C" NOT NULL REFERENCES judgments (id),
    completion_id TEXT COLLATE "C" NOT NULL REFERENCES completions (id),
    -- In Unicode scalar values of the completion's text; the end is exclusive.
    start_char BIGINT NOT NULL CHECK (start_char >= 0),
    end_char BIGINT NOT NULL CHECK (end_char > start_char),
    note TEXT,
    PRIMARY KEY (judgment_id, completion_id, start_char)
);
CREATE INDEX judgment_spans_by_completion ON judgment_spans (completion_id);
