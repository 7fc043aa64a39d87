-- Conversations: comparison sets that follow each other, and stretches of completions that labelers marked as wrong. Keep
-- in step with migrations/postgres.

CREATE TABLE conversations (
    id TEXT PRIMARY KEY,
    labeler_id TEXT NOT NULL REFERENCES labelers (id),
    created INTEGER NOT NULL
) STRICT;
CREATE INDEX conversations_by_labeler ON conversations (labeler_id, id);

CREATE TABLE conversation_turns (
    conversation_id TEXT NOT NULL REFERENCES conversations (id),
    turn INTEGER NOT NULL CHECK (turn >= 1),
    set_id TEXT NOT NULL UNIQUE REFERENCES comparison_sets (id),
    -- The completion of the turn before that this turn's prompt contains; NULL in the first turn.
    continued_id TEXT REFERENCES completions (id),
    created INTEGER NOT NULL,
    PRIMARY KEY (conversation_id, turn)
) STRICT;

CREATE TABLE judgment_spans (
    judgment_id TEXT NOT NULL REFERENCES judgments (id),
    completion_id TEXT NOT NULL REFERENCES completions (id),
    -- In Unicode scalar values of the completion's text; the end is exclusive.
    start_char INTEGER NOT NULL CHECK (start_char >= 0),
    end_char INTEGER NOT NULL CHECK (end_char > start_char),
    note TEXT,
    PRIMARY KEY (judgment_id, completion_id, start_char)
) STRICT;
CREATE INDEX judgment_spans_by_completion ON judgment_spans (completion_id);
