-- Webhooks: addresses that are told of events, what is to be sent to them, and the state of notices; and who people are
-- at systems that authenticate them. Keep in step with migrations/sqlite.
CREATE TABLE webhooks (
    id TEXT COLLATE "C" PRIMARY KEY,
    url TEXT NOT NULL,
    -- JSON: names of events.
    events JSONB NOT NULL,
    -- Signs every delivery, so it is kept as it is.
    secret TEXT NOT NULL,
    created BIGINT NOT NULL,
    -- Events that were stored before this time have their deliveries.
    derived_until BIGINT NOT NULL
);

CREATE TABLE webhook_deliveries (
    id TEXT COLLATE "C" PRIMARY KEY,
    webhook_id TEXT COLLATE "C" NOT NULL REFERENCES webhooks (id),
    event TEXT NOT NULL,
    -- The row that the event is about: a judgment's id, a job's id and number of its event, an audit entry's id.
    source TEXT COLLATE "C" NOT NULL,
    body TEXT NOT NULL,
    state TEXT NOT NULL CHECK (state IN ('pending', 'delivered', 'failed')),
    attempts BIGINT NOT NULL,
    next_attempt BIGINT NOT NULL,
    -- Of the last attempt: the status of the response, or why there was none.
    last_code BIGINT,
    last_error TEXT,
    created BIGINT NOT NULL,
    ended BIGINT,
    -- The server that sends it, and until when it holds it.
    held_by TEXT,
    held_until BIGINT NOT NULL,
    UNIQUE (webhook_id, event, source)
);
CREATE INDEX webhook_deliveries_due ON webhook_deliveries (webhook_id, next_attempt) WHERE state = 'pending';
CREATE INDEX webhook_deliveries_by_time ON webhook_deliveries (created, id);

-- Whether what a notice is about is the case now.
CREATE TABLE notices (
    event TEXT PRIMARY KEY,
    raised BOOLEAN NOT NULL,
    since BIGINT NOT NULL
);

-- Events are looked for by the time at which they were stored.
CREATE INDEX judgments_by_time ON judgments (created);
CREATE INDEX job_events_of_states ON job_events (created) WHERE kind = 'state';

-- Who people are at systems that authenticate them.
CREATE TABLE identities (
    -- 'proxy': a reverse proxy in front of the server.
    provider TEXT COLLATE "C" NOT NULL,
    -- The person's name there.
    subject TEXT COLLATE "C" NOT NULL,
    labeler_id TEXT COLLATE "C" NOT NULL REFERENCES labelers (id),
    created BIGINT NOT NULL,
    PRIMARY KEY (provider, subject)
);
CREATE INDEX identities_by_labeler ON identities (labeler_id);
