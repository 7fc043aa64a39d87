-- Webhooks: addresses that are told of events, what is to be sent to them, and the state of notices; and who people are
-- at systems that authenticate them. Keep in step with migrations/postgres.
CREATE TABLE webhooks (
    id TEXT PRIMARY KEY,
    url TEXT NOT NULL,
    -- JSON: names of events.
    events TEXT NOT NULL,
    -- Signs every delivery, so it is kept as it is.
    secret TEXT NOT NULL,
    created INTEGER NOT NULL,
    -- Events that were stored before this time have their deliveries.
    derived_until INTEGER NOT NULL
) STRICT;

CREATE TABLE webhook_deliveries (
    id TEXT PRIMARY KEY,
    webhook_id TEXT NOT NULL REFERENCES webhooks (id),
    event TEXT NOT NULL,
    -- The row that the event is about: a judgment's id, a job's id and number of its event, an audit entry's id.
    source TEXT NOT NULL,
    body TEXT NOT NULL,
    state TEXT NOT NULL CHECK (state IN ('pending', 'delivered', 'failed')),
    attempts INTEGER NOT NULL,
    next_attempt INTEGER NOT NULL,
    -- Of the last attempt: the status of the response, or why there was none.
    last_code INTEGER,
    last_error TEXT,
    created INTEGER NOT NULL,
    ended INTEGER,
    -- The server that sends it, and until when it holds it.
    held_by TEXT,
    held_until INTEGER NOT NULL,
    UNIQUE (webhook_id, event, source)
) STRICT;
CREATE INDEX webhook_deliveries_due ON webhook_deliveries (webhook_id, next_attempt) WHERE state = 'pending';
CREATE INDEX webhook_deliveries_by_time ON webhook_deliveries (created, id);

-- Whether what a notice is about is the case now.
CREATE TABLE notices (
    event TEXT PRIMARY KEY,
    raised INTEGER NOT NULL CHECK (raised IN (0, 1)),
    since INTEGER NOT NULL
) STRICT;

-- Events are looked for by the time at which they were stored.
CREATE INDEX judgments_by_time ON judgments (created);
CREATE INDEX job_events_of_states ON job_events (created) WHERE kind = 'state';

-- Who people are at systems that authenticate them.
CREATE TABLE identities (
    -- 'proxy': a reverse proxy in front of the server.
    provider TEXT NOT NULL,
    -- The person's name there.
    subject TEXT NOT NULL,
    labeler_id TEXT NOT NULL REFERENCES labelers (id),
    created INTEGER NOT NULL,
    PRIMARY KEY (provider, subject)
) STRICT;
CREATE INDEX identities_by_labeler ON identities (labeler_id);
