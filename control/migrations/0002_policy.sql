-- Roles as policies name them; whoever was first owns the tailnet. Groups are a JSON list.
ALTER TABLE users ADD COLUMN role TEXT NOT NULL DEFAULT 'member';
ALTER TABLE users ADD COLUMN user_groups TEXT NOT NULL DEFAULT '[]';
UPDATE users SET role = 'owner'
    WHERE id IN (SELECT MIN(id) FROM users GROUP BY tailnet_id);
CREATE UNIQUE INDEX users_one_owner ON users (tailnet_id) WHERE role = 'owner';

-- A JSON list of prefixes.
ALTER TABLE nodes ADD COLUMN approved_routes TEXT NOT NULL DEFAULT '[]';

-- Policies that were in force; the newest version is now. `domains` and `known_groups`: those of the
-- tailnet when it was accepted (JSON lists), so that it stays valid when their last user goes.
CREATE TABLE policies (
    tailnet_id   INTEGER NOT NULL REFERENCES tailnets (id),
    version      INTEGER NOT NULL,
    text         TEXT    NOT NULL,
    domains      TEXT    NOT NULL,
    known_groups TEXT    NOT NULL,
    author       TEXT    NOT NULL,
    created_at   INTEGER NOT NULL,
    PRIMARY KEY (tailnet_id, version)
);
