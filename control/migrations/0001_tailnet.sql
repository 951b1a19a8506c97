-- One row per tailnet; `change_number` orders every committed change of that tailnet,
-- `address_cursor` is the offset in 100.64.0.0/10 after which the next address is sought.
CREATE TABLE tailnets (
    id             INTEGER PRIMARY KEY,
    name           TEXT    NOT NULL UNIQUE,
    change_number  INTEGER NOT NULL DEFAULT 0,
    address_cursor INTEGER NOT NULL DEFAULT 0
);
INSERT INTO tailnets (id, name) VALUES (1, 'default');

-- What changed under which number, for replicas that have to catch up.
CREATE TABLE changes (
    tailnet_id INTEGER NOT NULL REFERENCES tailnets (id),
    number     INTEGER NOT NULL,
    kind       TEXT    NOT NULL,
    subject    INTEGER NOT NULL,
    PRIMARY KEY (tailnet_id, number)
);

CREATE TABLE users (
    id         INTEGER PRIMARY KEY AUTOINCREMENT,
    tailnet_id INTEGER NOT NULL REFERENCES tailnets (id),
    name       TEXT    NOT NULL,
    created_at INTEGER NOT NULL,
    UNIQUE (tailnet_id, name)
);

-- The key itself is shown once; `secret_hash` is its SHA-256, `prefix` what people recognise it by.
CREATE TABLE auth_keys (
    id          INTEGER PRIMARY KEY AUTOINCREMENT,
    tailnet_id  INTEGER NOT NULL REFERENCES tailnets (id),
    user_id     INTEGER NOT NULL REFERENCES users (id),
    prefix      TEXT    NOT NULL,
    secret_hash TEXT    NOT NULL UNIQUE,
    reusable    BOOLEAN NOT NULL,
    ephemeral   BOOLEAN NOT NULL,
    tags        TEXT    NOT NULL,
    created_at  INTEGER NOT NULL,
    expires_at  INTEGER,
    used_at     INTEGER,
    revoked_at  INTEGER
);

-- AUTOINCREMENT: a node id is never used twice (pitfall 41 of the protocol digest).
CREATE TABLE nodes (
    id          INTEGER PRIMARY KEY AUTOINCREMENT,
    tailnet_id  INTEGER NOT NULL REFERENCES tailnets (id),
    stable_id   TEXT    NOT NULL UNIQUE,
    user_id     INTEGER NOT NULL REFERENCES users (id),
    machine_key TEXT    NOT NULL,
    node_key    TEXT    NOT NULL UNIQUE,
    disco_key   TEXT,
    name        TEXT    NOT NULL,
    renamed     BOOLEAN NOT NULL,
    ipv4        TEXT    NOT NULL,
    ipv6        TEXT    NOT NULL,
    tags        TEXT    NOT NULL,
    ephemeral   BOOLEAN NOT NULL,
    capver      INTEGER NOT NULL,
    hostinfo    TEXT    NOT NULL,
    home_derp   INTEGER NOT NULL,
    endpoints   TEXT    NOT NULL,
    created_at  INTEGER NOT NULL,
    expires_at  INTEGER,
    last_seen   INTEGER,
    UNIQUE (tailnet_id, name),
    UNIQUE (tailnet_id, ipv4),
    UNIQUE (tailnet_id, ipv6)
);
CREATE INDEX nodes_by_machine ON nodes (tailnet_id, machine_key);
