-- A store of version 10: rows that decide about patient and time have checksums, and their tables know how many they have.
-- Never changed: the programs that wrote such stores are on gateways.
BEGIN TRANSACTION;
CREATE TABLE association (id INTEGER PRIMARY KEY, device TEXT NOT NULL, patient TEXT, encounter TEXT,
        valid_from INTEGER, valid_to INTEGER, source TEXT NOT NULL, entered INTEGER NOT NULL, crc INTEGER);
INSERT INTO "association" VALUES(1,'band-1','p',NULL,1,NULL,'api',2,3624713629);
CREATE TABLE boot (id INTEGER PRIMARY KEY, boot_id TEXT NOT NULL UNIQUE, reference_us INTEGER, reference_wall INTEGER, given_up INTEGER, crc INTEGER);
INSERT INTO "boot" VALUES(1,'5e0fb00t-0000-4000-8000-000000000001',77,88,NULL,455701926);
INSERT INTO "boot" VALUES(2,'5e0fb00t-0000-4000-8000-000000000002',NULL,NULL,99,1825890998);
CREATE TABLE correction (id INTEGER PRIMARY KEY, destination INTEGER NOT NULL, device TEXT NOT NULL, valid_from INTEGER,
        valid_to INTEGER, patient_before TEXT, patient_after TEXT, state TEXT NOT NULL, crc INTEGER);
INSERT INTO "correction" VALUES(1,1,'band-1',1,NULL,'p','q','open',2242925524);
CREATE TABLE dead_letter (id INTEGER PRIMARY KEY, destination INTEGER, position INTEGER NOT NULL, match_number INTEGER,
        source INTEGER NOT NULL, stage TEXT NOT NULL, cause TEXT NOT NULL, error TEXT NOT NULL, revision INTEGER NOT NULL,
        wall INTEGER NOT NULL, message BLOB NOT NULL, counted TEXT);
INSERT INTO "dead_letter" VALUES(1,1,3,2,1,'write','write|NotSupportedException|','{"name":"NotSupportedException","operation":"FHIRConversion","severity":"Warning","error_type":"FHIRResourceError","repair":"Mapping","retry":false,"text":"refused"}',1,5,X'22B076EA012600000028B52FFD20263101003901010106B8EDFB93D9F9E33F030106776172642F310662616E642D3100077B226E223A337D','[1]');
CREATE TABLE destination (id INTEGER PRIMARY KEY, name TEXT NOT NULL UNIQUE);
INSERT INTO "destination" VALUES(1,'ehr');
CREATE TABLE journal_2 (first INTEGER PRIMARY KEY, count INTEGER NOT NULL, batch BLOB NOT NULL);
INSERT INTO "journal_2" VALUES(3,2,X'49A803CC014600000028B52FFD2046C5010004033901010106B8EDFB93D9F9E33F030106776172642F310662616E642D3100077B226E223A337D3901010102840104347D01001E8A2A03');
CREATE TABLE journal_3 (first INTEGER PRIMARY KEY, count INTEGER NOT NULL, batch BLOB NOT NULL);
INSERT INTO "journal_3" VALUES(5,1,X'B629CB50012600000028B52FFD2026310100390101010A9CDB8094D9F9E33F050106776172642F310662616E642D3100077B226E223A357D');
CREATE TABLE ledger (id INTEGER PRIMARY KEY, destination INTEGER, source INTEGER, device TEXT, type TEXT,
        first INTEGER, last INTEGER, count INTEGER NOT NULL, reason TEXT NOT NULL, wall INTEGER NOT NULL);
INSERT INTO "ledger" VALUES(1,1,1,NULL,NULL,1,2,2,'history',5);
CREATE TABLE meta (key TEXT PRIMARY KEY, value) WITHOUT ROWID;
INSERT INTO "meta" VALUES('next_position',6);
INSERT INTO "meta" VALUES('packs',X'6B657074207061636B73');
INSERT INTO "meta" VALUES('store_id','5bca216503a1b156c17722b311e154ae');
CREATE TABLE outbox (id INTEGER PRIMARY KEY, destination INTEGER NOT NULL, series INTEGER NOT NULL, period INTEGER,
        first INTEGER NOT NULL, last INTEGER NOT NULL, count INTEGER NOT NULL, oldest INTEGER NOT NULL,
        refs BLOB, revision INTEGER, waiting TEXT);
INSERT INTO "outbox" VALUES(1,1,1,36000000000,3,3,1,9,NULL,NULL,NULL);
INSERT INTO "outbox" VALUES(2,1,1,NULL,3,4,2,9,X'0206010200',1,'{"name":"PatientNotFoundException","operation":"FHIRConversion","severity":"Warning","error_type":"FHIRResourceError","repair":"Site","retry":true,"text":"no patient"}');
CREATE TABLE progress (id INTEGER PRIMARY KEY CHECK (id = 1), state TEXT NOT NULL, crc INTEGER);
INSERT INTO "progress" VALUES(1,'{"cursor":4,"messages":4,"matched":3,"unmatched":1,"unparsable":0,"shadowed":0,"matches":3,"destinations":{"1":{"cursor":2,"matches":3,"delivered":1,"superseded":0,"dead":0,"lost":0,"written":0}}}',1064826497);
CREATE TABLE revision (id INTEGER PRIMARY KEY, hash TEXT NOT NULL UNIQUE, bundle BLOB NOT NULL);
INSERT INTO "revision" VALUES(1,'hash',X'7061636B73');
CREATE TABLE segment (id INTEGER PRIMARY KEY, first INTEGER NOT NULL, opened_us INTEGER NOT NULL);
INSERT INTO "segment" VALUES(2,3,3600000001);
INSERT INTO "segment" VALUES(3,5,7200000002);
CREATE TABLE sent_period (destination INTEGER NOT NULL, observation TEXT NOT NULL, memory BLOB NOT NULL,
        expires INTEGER NOT NULL, PRIMARY KEY (destination, observation)) WITHOUT ROWID;
INSERT INTO "sent_period" VALUES(1,'obs',X'6D656D6F7279',9223372036854775807);
CREATE TABLE series (id INTEGER PRIMARY KEY, key BLOB NOT NULL UNIQUE);
INSERT INTO "series" VALUES(1,X'0568656172740662616E642D31096865617274726174650101700000');
CREATE TABLE sent_record (source INTEGER NOT NULL, position INTEGER NOT NULL, record INTEGER NOT NULL, crc INTEGER,
        PRIMARY KEY (source, position)) WITHOUT ROWID;
INSERT INTO "sent_record" VALUES(1,2,-7,2134163763);
CREATE TABLE sighting (destination INTEGER NOT NULL, device TEXT NOT NULL, record TEXT NOT NULL, crc INTEGER,
        PRIMARY KEY (destination, device)) WITHOUT ROWID;
INSERT INTO "sighting" VALUES(1,'band-1','{"device":"d-1","version":"3","backwards":true,"exact":false,"several":false,"stays":[{"patient":"p","from":1,"until":2}],"statements":[]}',1934988511);
CREATE TABLE source_memory (source INTEGER NOT NULL, key TEXT NOT NULL, text TEXT NOT NULL,
        PRIMARY KEY (source, key)) WITHOUT ROWID;
INSERT INTO "source_memory" VALUES(1,'ward3/gw7','{"births":{"oxi7":{"1":["hr",3]}},"missing":"no-birth"}');
CREATE TABLE source (id INTEGER PRIMARY KEY, name TEXT NOT NULL UNIQUE);
INSERT INTO "source" VALUES(1,'ward');
CREATE TABLE unmatched (first INTEGER PRIMARY KEY, last INTEGER NOT NULL, source INTEGER NOT NULL, count INTEGER NOT NULL,
        no_pack INTEGER NOT NULL, wall INTEGER NOT NULL);
INSERT INTO "unmatched" VALUES(4,4,1,1,0,6);
CREATE TABLE former (id INTEGER PRIMARY KEY, file TEXT NOT NULL UNIQUE, state TEXT NOT NULL);
INSERT INTO "former" VALUES(1,'store.db.damaged-20260101T000000Z','{"file":"store.db.damaged-20260101T000000Z","store":"00000000000000000000000000000001","stage":"done","mark":9,"letters_seen":0,"known":true,"messages":1,"letters":0,"lost":0,"lost_runs":[],"unreadable_bytes":0,"missing":[],"waits":null,"filled_to":4,"finished":5,"settled":true}');
CREATE TABLE recovered (first INTEGER PRIMARY KEY, count INTEGER NOT NULL, former INTEGER NOT NULL,
        position INTEGER NOT NULL, store TEXT NOT NULL, known_as INTEGER NOT NULL);
INSERT INTO "recovered" VALUES(4,1,1,9,'00000000000000000000000000000001',9);
CREATE TABLE identity (id INTEGER PRIMARY KEY, mark TEXT NOT NULL, key TEXT NOT NULL, value TEXT NOT NULL);
INSERT INTO "identity" VALUES(1,'bedside-store','store','5bca216503a1b156c17722b311e154ae');
INSERT INTO "identity" VALUES(2,'bedside-store','source/1','ward');
INSERT INTO "identity" VALUES(3,'bedside-store','destination/1','ehr');
INSERT INTO "identity" VALUES(4,'bedside-store','boot/1','5e0fb00t-0000-4000-8000-000000000001');
CREATE TABLE device_clock (device TEXT PRIMARY KEY, state TEXT NOT NULL, crc INTEGER) WITHOUT ROWID;
INSERT INTO "device_clock" VALUES('band-1','{"entries":[{"from":0,"correction":36000000000,"received":88,"began":88}],"suspect":null,"seen":3}',2590390305);
CREATE TABLE doubt (subject TEXT PRIMARY KEY, since INTEGER NOT NULL, crc INTEGER) WITHOUT ROWID;
INSERT INTO "doubt" VALUES('sighting',7,1532830871);
CREATE TABLE row_sum (name TEXT PRIMARY KEY, rows INTEGER NOT NULL, sum INTEGER NOT NULL, again INTEGER NOT NULL)
        WITHOUT ROWID;
INSERT INTO "row_sum" VALUES('association',1,3624713629,-3624713630);
INSERT INTO "row_sum" VALUES('boot',2,2281592924,-2281592926);
INSERT INTO "row_sum" VALUES('correction',1,2242925524,-2242925525);
INSERT INTO "row_sum" VALUES('device_clock',1,2590390305,-2590390306);
INSERT INTO "row_sum" VALUES('doubt',1,1532830871,-1532830872);
INSERT INTO "row_sum" VALUES('sighting',1,1934988511,-1934988512);
CREATE TRIGGER identity_store AFTER INSERT ON meta WHEN new.key = 'store_id' BEGIN
        INSERT INTO identity (mark, key, value) VALUES ('bedside-store', 'store', new.value); END;
CREATE TRIGGER identity_source AFTER INSERT ON source BEGIN
        INSERT INTO identity (mark, key, value) VALUES ('bedside-store', 'source/' || new.id, new.name); END;
CREATE TRIGGER identity_destination AFTER INSERT ON destination BEGIN
        INSERT INTO identity (mark, key, value) VALUES ('bedside-store', 'destination/' || new.id, new.name); END;
CREATE TRIGGER identity_boot AFTER INSERT ON boot BEGIN
        INSERT INTO identity (mark, key, value) VALUES ('bedside-store', 'boot/' || new.id, new.boot_id); END;
CREATE TRIGGER sum_association_new AFTER INSERT ON association BEGIN UPDATE row_sum SET rows = rows + 1, sum = sum + coalesce(new.crc, 0), again = again - (1) - (coalesce(new.crc, 0))
                 WHERE name = 'association'; END;
CREATE TRIGGER sum_association_gone AFTER DELETE ON association BEGIN UPDATE row_sum SET rows = rows + -1, sum = sum + -coalesce(old.crc, 0), again = again - (-1) - (-coalesce(old.crc, 0))
                 WHERE name = 'association'; END;
CREATE TRIGGER sum_association_changed AFTER UPDATE OF crc ON association BEGIN UPDATE row_sum SET rows = rows + 0, sum = sum + (coalesce(new.crc, 0) - coalesce(old.crc, 0)), again = again - (0) - ((coalesce(new.crc, 0) - coalesce(old.crc, 0)))
                 WHERE name = 'association'; END;
CREATE TRIGGER sum_correction_new AFTER INSERT ON correction BEGIN UPDATE row_sum SET rows = rows + 1, sum = sum + coalesce(new.crc, 0), again = again - (1) - (coalesce(new.crc, 0))
                 WHERE name = 'correction'; END;
CREATE TRIGGER sum_correction_gone AFTER DELETE ON correction BEGIN UPDATE row_sum SET rows = rows + -1, sum = sum + -coalesce(old.crc, 0), again = again - (-1) - (-coalesce(old.crc, 0))
                 WHERE name = 'correction'; END;
CREATE TRIGGER sum_correction_changed AFTER UPDATE OF crc ON correction BEGIN UPDATE row_sum SET rows = rows + 0, sum = sum + (coalesce(new.crc, 0) - coalesce(old.crc, 0)), again = again - (0) - ((coalesce(new.crc, 0) - coalesce(old.crc, 0)))
                 WHERE name = 'correction'; END;
CREATE TRIGGER sum_sighting_new AFTER INSERT ON sighting BEGIN UPDATE row_sum SET rows = rows + 1, sum = sum + coalesce(new.crc, 0), again = again - (1) - (coalesce(new.crc, 0))
                 WHERE name = 'sighting'; END;
CREATE TRIGGER sum_sighting_gone AFTER DELETE ON sighting BEGIN UPDATE row_sum SET rows = rows + -1, sum = sum + -coalesce(old.crc, 0), again = again - (-1) - (-coalesce(old.crc, 0))
                 WHERE name = 'sighting'; END;
CREATE TRIGGER sum_sighting_changed AFTER UPDATE OF crc ON sighting BEGIN UPDATE row_sum SET rows = rows + 0, sum = sum + (coalesce(new.crc, 0) - coalesce(old.crc, 0)), again = again - (0) - ((coalesce(new.crc, 0) - coalesce(old.crc, 0)))
                 WHERE name = 'sighting'; END;
CREATE TRIGGER sum_device_clock_new AFTER INSERT ON device_clock BEGIN UPDATE row_sum SET rows = rows + 1, sum = sum + coalesce(new.crc, 0), again = again - (1) - (coalesce(new.crc, 0))
                 WHERE name = 'device_clock'; END;
CREATE TRIGGER sum_device_clock_gone AFTER DELETE ON device_clock BEGIN UPDATE row_sum SET rows = rows + -1, sum = sum + -coalesce(old.crc, 0), again = again - (-1) - (-coalesce(old.crc, 0))
                 WHERE name = 'device_clock'; END;
CREATE TRIGGER sum_device_clock_changed AFTER UPDATE OF crc ON device_clock BEGIN UPDATE row_sum SET rows = rows + 0, sum = sum + (coalesce(new.crc, 0) - coalesce(old.crc, 0)), again = again - (0) - ((coalesce(new.crc, 0) - coalesce(old.crc, 0)))
                 WHERE name = 'device_clock'; END;
CREATE TRIGGER sum_boot_new AFTER INSERT ON boot BEGIN UPDATE row_sum SET rows = rows + 1, sum = sum + coalesce(new.crc, 0), again = again - (1) - (coalesce(new.crc, 0))
                 WHERE name = 'boot'; END;
CREATE TRIGGER sum_boot_gone AFTER DELETE ON boot BEGIN UPDATE row_sum SET rows = rows + -1, sum = sum + -coalesce(old.crc, 0), again = again - (-1) - (-coalesce(old.crc, 0))
                 WHERE name = 'boot'; END;
CREATE TRIGGER sum_boot_changed AFTER UPDATE OF crc ON boot BEGIN UPDATE row_sum SET rows = rows + 0, sum = sum + (coalesce(new.crc, 0) - coalesce(old.crc, 0)), again = again - (0) - ((coalesce(new.crc, 0) - coalesce(old.crc, 0)))
                 WHERE name = 'boot'; END;
CREATE TRIGGER sum_doubt_new AFTER INSERT ON doubt BEGIN UPDATE row_sum SET rows = rows + 1, sum = sum + coalesce(new.crc, 0), again = again - (1) - (coalesce(new.crc, 0))
                 WHERE name = 'doubt'; END;
CREATE TRIGGER sum_doubt_gone AFTER DELETE ON doubt BEGIN UPDATE row_sum SET rows = rows + -1, sum = sum + -coalesce(old.crc, 0), again = again - (-1) - (-coalesce(old.crc, 0))
                 WHERE name = 'doubt'; END;
CREATE TRIGGER sum_doubt_changed AFTER UPDATE OF crc ON doubt BEGIN UPDATE row_sum SET rows = rows + 0, sum = sum + (coalesce(new.crc, 0) - coalesce(old.crc, 0)), again = again - (0) - ((coalesce(new.crc, 0) - coalesce(old.crc, 0)))
                 WHERE name = 'doubt'; END;
COMMIT;
PRAGMA user_version = 10;
PRAGMA application_id = 1650811969;
