BEGIN TRANSACTION;
CREATE TABLE image (
    id TEXT PRIMARY KEY, size_bytes INTEGER NOT NULL, config TEXT NOT NULL, chain_ids TEXT NOT NULL,
    manifest BLOB NOT NULL, configuration BLOB NOT NULL, created_at_ns INTEGER NOT NULL);
INSERT INTO "image" VALUES('sha256:aa',10,'{"cmd": ["sh"]}','sha256:cc',X'7B7D',X'7B7D',7);
CREATE TABLE image_layer (
    image_id TEXT NOT NULL REFERENCES image (id) ON DELETE CASCADE, chain_id TEXT NOT NULL,
    PRIMARY KEY (image_id, chain_id)) WITHOUT ROWID;
INSERT INTO "image_layer" VALUES('sha256:aa','sha256:cc');
CREATE TABLE layer (
    chain_id TEXT PRIMARY KEY, directory INTEGER NOT NULL UNIQUE, bytes INTEGER NOT NULL, inodes INTEGER NOT NULL,
    opaque INTEGER NOT NULL, root_given INTEGER NOT NULL, created_at_ns INTEGER NOT NULL);
INSERT INTO "layer" VALUES('sha256:cc',1,10,2,0,1,7);
CREATE TABLE name (reference TEXT PRIMARY KEY, image_id TEXT NOT NULL REFERENCES image (id) ON DELETE CASCADE);
INSERT INTO "name" VALUES('registry.example/a:1','sha256:aa');
CREATE TABLE rootfs (container_id TEXT PRIMARY KEY, image_id TEXT NOT NULL);
INSERT INTO "rootfs" VALUES('c1','sha256:aa');
CREATE TABLE rootfs_layer (
    container_id TEXT NOT NULL REFERENCES rootfs (container_id) ON DELETE CASCADE, chain_id TEXT NOT NULL,
    PRIMARY KEY (container_id, chain_id)) WITHOUT ROWID;
CREATE INDEX image_layer_chain ON image_layer (chain_id);
CREATE INDEX rootfs_layer_chain ON rootfs_layer (chain_id);
COMMIT;
PRAGMA user_version = 1;
