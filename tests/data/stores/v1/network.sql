BEGIN TRANSACTION;
CREATE TABLE address (ip TEXT PRIMARY KEY, subnet TEXT NOT NULL, sandbox_id TEXT NOT NULL);
INSERT INTO "address" VALUES('10.88.0.2','10.88.0.0/16','5a5a5a5a5a5a5a5a5a5a5a5a5a5a5a5a5a5a5a5a5a5a5a5a5a5a5a5a5a5a5a5a');
CREATE TABLE pod_cidr (subnet TEXT NOT NULL);
CREATE TABLE port (protocol TEXT NOT NULL, host_ip TEXT NOT NULL, host_port INTEGER NOT NULL, container_port INTEGER NOT NULL, sandbox_id TEXT NOT NULL, PRIMARY KEY (protocol, host_ip, host_port));
INSERT INTO "port" VALUES('tcp','127.0.0.1',8080,80,'5a5a5a5a5a5a5a5a5a5a5a5a5a5a5a5a5a5a5a5a5a5a5a5a5a5a5a5a5a5a5a5a');
CREATE TABLE turn (subnet TEXT PRIMARY KEY, ip TEXT NOT NULL);
COMMIT;
PRAGMA user_version = 1;
